"""The local three-zone cluster, its toolchain and its images. For checkouts; the wheel does not carry it.

`cluster.tools` builds the programs, `cluster.up` makes the kind cluster, `cluster.images` builds and loads the
project's images, `cluster.controlplane` runs an API server without nodes for tests. `cluster.cache`
keeps what they build.
"""
