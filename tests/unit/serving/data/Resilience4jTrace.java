// Records what resilience4j 2.3.0 does, as data/resilience4j_trace.json. To record again, put resilience4j-circuitbreaker,
// resilience4j-core and slf4j-api on the class path:  javac Resilience4jTrace.java && java Resilience4jTrace
// An event is [operation, argument or result, state after it, failure rate after it].

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
    // Window, minimum of calls, threshold, wait in ms, calls in half-open.
    int[][] configs = {
      {20, 5, 50, 5000, 3}, {4, 4, 50, 500, 2}, {10, 10, 100, 1000, 1},
      {5, 3, 40, 2000, 4}, {1, 1, 1, 500, 1}, {8, 2, 75, 1500, 5}
    };
    StringBuilder out = new StringBuilder("[");
    for (int c = 0; c < configs.length; c++) {
      int[] k = configs[c];
      SetClock clock = new SetClock();
      Random random = new Random(100 + c);
      CircuitBreaker breaker = new CircuitBreakerStateMachine("x", CircuitBreakerConfig.custom()
          .slidingWindowType(CircuitBreakerConfig.SlidingWindowType.COUNT_BASED)
          .slidingWindowSize(k[0]).minimumNumberOfCalls(k[1]).failureRateThreshold(k[2])
          .waitDurationInOpenState(Duration.ofMillis(k[3])).permittedNumberOfCallsInHalfOpenState(k[4])
          .clock(clock).build());
      out.append(c == 0 ? "" : ",").append(String.format(
          "{\"config\":{\"slidingWindowSize\":%d,\"minimumNumberOfCalls\":%d,\"failureRateThreshold\":%d,"
          + "\"waitDurationInOpenState\":\"%dms\",\"permittedCallsInHalfOpenState\":%d},\"events\":[",
          k[0], k[1], k[2], k[3], k[4]));
      int held = 0;
      double failing = 0.3;
      for (int i = 0; i < 160; i++) {
        if (i % 25 == 0) failing = random.nextDouble();
        CircuitBreaker.State state = breaker.getState();
        int x = random.nextInt(100);
        String operation, result = "null";
        if (held > 0 && (x < 60 || state == CircuitBreaker.State.CLOSED)) {
          held--;
          if (x % 10 == 9) {
            operation = "release";
            breaker.releasePermission();
          } else if (random.nextDouble() < failing) {
            operation = "failure";
            breaker.onError(0, TimeUnit.MILLISECONDS, new RuntimeException());
          } else {
            operation = "success";
            breaker.onSuccess(0, TimeUnit.MILLISECONDS);
          }
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
        out.append(i == 0 ? "" : ",").append(String.format(Locale.ROOT, "[\"%s\",%s,\"%s\",%s]",
            operation, result, breaker.getState(), breaker.getMetrics().getFailureRate()));
      }
      out.append("]}");
    }
    System.out.println(out.append("]"));
  }
}
