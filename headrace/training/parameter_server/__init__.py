"""Servers that hold the model while workers push gradients and pull weights.

    layout        which server holds which rows of which tensor
    membership    who waits for whom: Asynchronous, StaleSynchronous, Synchronous
    state         one server's weights, optimizer and workers
    server        its connections and threads; `__main__` runs one
    checkpoint    its shard in storage
    client        a worker's side; `observer` only looks
    link          the connection to one server, made again when it breaks
    wire          frames on TCP
    compression   smaller gradients, with memory of what was left out

Why frames on TCP of our own. A payload to a peer and one of its size back, medians in milliseconds on loopback of two
cores (Intel Xeon, torch 2.6, load 0.8; `python -m benchmarks.parameter_server transport` measures again):

                                            1 MB   10 MB   100 MB
    torch.distributed.rpc (TensorPipe)      2.1     4.7     113
    torch.distributed send/recv (gloo)      0.6     9.8      95
    frames on TCP, a thread per connection  0.4     8.6     115
    frames on TCP, asyncio                  0.5     7.6      93

No way is clearly faster over these sizes, so other things decide. A gloo group has fixed members and ends with the
first that dies. RPC has fixed members as well, unpickles what it receives, and is in maintenance mode. Over TCP a
worker or server may die and come back, and nothing that is received is ever executed. Threads and asyncio are within
a quarter of each other; a thread per connection makes the wait at a barrier a plain condition variable.
"""
