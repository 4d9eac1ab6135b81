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

TRANSPORT
"""
