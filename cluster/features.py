"""Switches that the kind cluster and the bare control plane of the tests have in common: gang scheduling by the
scheduler itself (alpha in Kubernetes 1.36: PodGroup of scheduling.k8s.io/v1alpha2).
"""

from __future__ import annotations

FEATURE_GATES: dict[str, bool] = {
    "GenericWorkload": True,
    "GangScheduling": True,
    "TopologyAwareWorkloadScheduling": True,
    "WorkloadAwarePreemption": True,
}

RUNTIME_CONFIG: dict[str, str] = {"scheduling.k8s.io/v1alpha2": "true"}


def feature_gates_flag() -> str:
    """`--feature-gates=…` of any Kubernetes program."""
    return "--feature-gates=" + ",".join(f"{name}={str(on).lower()}" for name, on in FEATURE_GATES.items())


def runtime_config_flag() -> str:
    """`--runtime-config=…` of kube-apiserver."""
    return "--runtime-config=" + ",".join(f"{name}={value}" for name, value in RUNTIME_CONFIG.items())
