"""The launcher of a worker: it starts the training processes, and starts all of them again when one fails.

A worker pod runs one agent, its training processes are the agent's children. The agents of a job meet at worker 0's,
which coordinates: it starts a *round* once everybody is there, with new ranks and a new rendezvous address, and when a
process fails, a pod vanishes or the steps stop coming it ends the round everywhere and starts the next. Pods stay, so a
failure costs the start of a process, not of a pod; what lost its pod is waited for. The operator is not in the path: a
restart needs nothing but the agents. It learns of it from worker 0's report, and makes lost pods anew.

Why not torchrun, which does half of this? Its c10d rendezvous lives inside the process of one host and dies with it:
the loss of that pod ends all agents. It notices a lost peer by the collective's error or not at all, so a paused
process hangs the job until the collective's timeout; it knows no steps, dumps no stacks, counts restarts in total, and
tells nobody the cause. Its agent imports torch (seconds, and hundreds of megabytes per pod). What training scripts see
is torchrun's environment, so nothing changes for them.

    agent.settings      what the agent is told
    agent.coordinator   the state machine of rounds: events in, messages out, no I/O
    agent.server        its sockets
    agent.member        the agent of one worker: connection, children, signals
    agent.child         one training process
    agent.beats         how far a process is, in memory shared with its agent
    agent.link          the process's side of it
    agent.watch         when a process counts as hung

Messages are lines of JSON over TCP; who does not know the run's id is turned away. Training code itself trusts the pod
network (gloo and NCCL have no authentication), so this channel is the stronger of the two.
"""
