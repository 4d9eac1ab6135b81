// Records what resilience4j 2.3.0 does, as data/resilience4j_trace.json. To record again, put
// resilience4j-circuitbreaker, resilience4j-core and slf4j-api on the class path:  javac Resilience4jTrace.java && java Resilience4jTrace
// An event is [operation, argument or result, state after it, failure rate after it, slow call rate after it]. The
// argument of success and failure is the call's duration in ms, that of advance the time that passes.

import io.github.resilience4j.circuitbreaker.CircuitBreaker;
import io.github.resilience4j.circuitbreaker.CircuitBreakerConfig;
import io.github.resilience4j.circuitbreaker.internal.CircuitBreakerStateMachine;
import java.time.Clock;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneId;
import java.time.ZoneOffset;
import java.util.Locale;
import java.util.Random;
import java.util.concurrent.TimeUnit;

public class Resilience4jTrace {
  static class SetClock extends Clock {
    long millis = 0;
    public ZoneId getZone() { return ZoneOffset.UTC; }
    public Clock withZone(ZoneId zone) { return this; }
    public Instant instant() { return Instant.ofEpochMilli(millis); }
  }

  public static void main(String[] arguments) {
    // Times are multiples of 1/8 s, which binary fractions hold exactly.
    // Window, minimum of calls, threshold, wait in ms, calls in half-open; slow threshold and duration in ms; by time.
    int[][] configs = {
      {20, 5, 50, 5000, 3, 100, 60000, 0}, {4, 4, 50, 500, 2, 100, 60000, 0}, {10, 10, 100, 1000, 1, 100, 60000, 0},
      {5, 3, 40, 2000, 4, 100, 60000, 0}, {1, 1, 1, 500, 1, 100, 60000, 0}, {8, 2, 75, 1500, 5, 100, 60000, 0},
      {10, 5, 60, 1000, 3, 50, 100, 0}, {6, 3, 100, 500, 2, 34, 250, 0},
      {5, 5, 50, 1000, 3, 100, 60000, 1}, {3, 4, 60, 500, 2, 50, 100, 1}, {1, 2, 50, 500, 4, 40, 100, 1},
      {10, 20, 30, 2000, 5, 60, 250, 1}
    };
    StringBuilder out = new StringBuilder("[");
    for (int c = 0; c < configs.length; c++) {
      int[] k = configs[c];
      SetClock clock = new SetClock();
      Random random = new Random(100 + c);
      CircuitBreaker breaker = new CircuitBreakerStateMachine("x", CircuitBreakerConfig.custom()
          .slidingWindowType(k[7] == 1 ? CircuitBreakerConfig.SlidingWindowType.TIME_BASED
              : CircuitBreakerConfig.SlidingWindowType.COUNT_BASED)
          .slowCallRateThreshold(k[5]).slowCallDurationThreshold(Duration.ofMillis(k[6]))
          .slidingWindowSize(k[0]).minimumNumberOfCalls(k[1]).failureRateThreshold(k[2])
          .waitDurationInOpenState(Duration.ofMillis(k[3])).permittedNumberOfCallsInHalfOpenState(k[4])
          .clock(clock).build());
      out.append(c == 0 ? "" : ",").append(String.format(
          "{\"config\":{\"slidingWindowType\":\"%s\",\"slowCallRateThreshold\":%d,"
          + "\"slowCallDurationThreshold\":\"%dms\","
          + "\"slidingWindowSize\":%d,\"minimumNumberOfCalls\":%d,\"failureRateThreshold\":%d,"
          + "\"waitDurationInOpenState\":\"%dms\",\"permittedCallsInHalfOpenState\":%d},\"events\":[",
          k[7] == 1 ? "TimeBased" : "CountBased", k[5], k[6], k[0], k[1], k[2], k[3], k[4]));
      int held = 0;
      double failing = 0.3, slow = 0.3;
      for (int i = 0; i < 140; i++) {
        if (i % 25 == 0) {
          failing = random.nextDouble();
          slow = random.nextDouble();
        }
        CircuitBreaker.State state = breaker.getState();
        int x = random.nextInt(100);
        String operation, result = "null";
        if (held > 0 && (x < 60 || state == CircuitBreaker.State.CLOSED)) {
          held--;
          if (x % 10 == 9) {
            operation = "release";
            breaker.releasePermission();
          } else {
            // At, below and above the threshold.
            int millis = random.nextDouble() < slow ? k[6] + 1 : random.nextBoolean() ? k[6] : 0;
            result = String.valueOf(millis);
            if (random.nextDouble() < failing) {
              operation = "failure";
              breaker.onError(millis, TimeUnit.MILLISECONDS, new RuntimeException());
            } else {
              operation = "success";
              breaker.onSuccess(millis, TimeUnit.MILLISECONDS);
            }
          }
        } else if (k[7] == 1 && x >= 85) {
          int millis = 125 * (1 + random.nextInt(12));
          clock.millis += millis;
          operation = "advance";
          result = String.valueOf(millis);
        } else if (state == CircuitBreaker.State.OPEN && x < 60) {
          int millis = x < 20 ? k[3] : x < 25 ? k[3] / 4 : k[3] / 2;
          clock.millis += millis;
          operation = "advance";
          result = String.valueOf(millis);
        } else {
          operation = "acquire";
          boolean permitted = breaker.tryAcquirePermission();
          if (breaker.getState() != state) held = 0;
          if (permitted) held++;
          result = permitted ? "1" : "0";
        }
        // Calls from before a change of state are left out: there Headrace differs on purpose.
        if (breaker.getState() != state && !operation.equals("acquire")) held = 0;
        out.append(i == 0 ? "" : ",").append(String.format(Locale.ROOT, "[\"%s\",%s,\"%s\",%s,%s]",
            operation, result, breaker.getState(), breaker.getMetrics().getFailureRate(),
            breaker.getMetrics().getSlowCallRate()));
      }
      out.append("]}");
    }
    System.out.println(out.append("]"));
  }
}
