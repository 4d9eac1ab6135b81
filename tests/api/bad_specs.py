"""Good specs, and what may be wrong with them: the field that the API server must name and the remedy it must say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
DIGITS = {"builtin": "Digits"}

GOOD_JOB: Manifest = {
    "apiVersion": "headrace.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "good"},
    "spec": {"numWorkers": 3, "classifier": {"dataset": DIGITS}, "resources": {"requests": {"cpu": "500m"}}},
}
GOOD_SERVICE: Manifest = {
    "apiVersion": "headrace.dev/v1alpha1",
    "kind": "InferenceService",
    "metadata": {"name": "good"},
    "spec": {
        "predictor": {"model": {"storageUri": "s3://models/digits"}},
        "fallback": [
            {"name": "small", "model": {"storageUri": "s3://models/digits-small"}},
            {"name": "static", "static": {"outputs": [{"name": "label", "datatype": "INT64", "data": [-1]}]}},
        ],
    },
}
GIT = {"repo": "https://git.example/team/models.git", "path": "serve.py"}
STATIC = GOOD_SERVICE["spec"]["fallback"][1]["static"]
MODEL = {"storageUri": "s3://models/x"}


@dataclass(frozen=True, slots=True)
class Bad:
    """One mistake.

    Attributes:
        name: What is wrong.
        base: The good object.
        patch: JSON merge patch (RFC 7396) of its spec.
        field: Path of the field that the refusal names.
        words: What the refusal says, the remedy among it.
        python: The models refuse it too.
        metadata: Patch of the metadata.
    """

    name: str
    base: Manifest
    patch: Any
    field: str
    words: str
    python: bool = True
    metadata: Any = None

    @property
    def manifest(self) -> Manifest:
        """The object with the mistake."""
        made: Manifest = merge_patch(self.base, {"spec": self.patch, "metadata": self.metadata or {}})
        return made


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def job(name: str, patch: Any, field: str, words: str, **more: Any) -> Bad:
    """A mistake in a TrainingJob."""
    return Bad(name, GOOD_JOB, patch, field, words, **more)


def script(name: str, source: Any, field: str, words: str) -> Bad:
    """A mistake in a TrainingJob's script."""
    return job(name, {"classifier": None, "script": source}, field, words)


def classic(name: str, patch: Any, field: str, words: str) -> Bad:
    """A mistake in a TrainingJob without a classifier."""
    return job(name, {"classifier": None, **patch}, field, words)


def service(name: str, patch: Any, field: str, words: str, **more: Any) -> Bad:
    """A mistake in an InferenceService."""
    return Bad(name, GOOD_SERVICE, patch, field, words, **more)


def predictor(name: str, patch: Any, field: str, words: str, **more: Any) -> Bad:
    """A mistake in a predictor."""
    return service(name, {"predictor": patch}, f"spec.predictor.{field}", words, **more)


def canary(name: str, patch: Any, field: str, words: str, **more: Any) -> Bad:
    """A mistake in a canary."""
    return service(name, {"canary": {"model": MODEL, **patch}}, f"spec.canary.{field}", words, **more)


def served(name: str, patch: Any, field: str, words: str, **more: Any) -> Bad:
    """A mistake in a TrainingJob with parameter servers."""
    topology = {"type": "ParameterServer", "parameterServer": {"servers": 2, **patch}}
    return job(name, {"topology": topology, **more}, f"spec.{field}", words)


def fallback(name: str, steps: Any, field: str, words: str, **more: Any) -> Bad:
    """A mistake in a chain of fallbacks."""
    return service(name, {"fallback": steps}, field, words, **more)


def tensor(name: str, output: Any, field: str, words: str, **more: Any) -> Bad:
    """A mistake in a static response."""
    return fallback(name, [{"name": "static", "static": {"outputs": [output]}}], field, words, **more)


GIT = {"repo": "https://git.example/team/models.git", "path": "train.py"}
DURATION = "write a duration such as 250ms, 30s, 5m or 1h30m"
STORAGE = "write a storage address such as s3://bucket/path"

JOBS: tuple[Bad, ...] = (
    job("suspend that is no boolean", {"suspend": "yes"}, "spec.suspend", "must be of type boolean", python=False),
    job(
        "negative time to live",
        {"ttlSecondsAfterFinished": -1},
        "spec.ttlSecondsAfterFinished",
        "greater than or equal",
    ),
    job("gang timeout of zero", {"scheduling": {"timeout": "0s"}}, "spec.scheduling.timeout", "above zero"),
    job("gang timeout in words", {"scheduling": {"timeout": "5 minutes"}}, "spec.scheduling.timeout", DURATION),
    job("nothing to run", {"classifier": None}, "spec", "(built-in trainers), script and command"),
    job("two things to run", {"script": {"path": "/a.py"}, "image": "x"}, "spec", "set exactly one of classifier"),
    job("command without image", {"classifier": None, "command": ["python"]}, "spec.image", "set image"),
    job("empty command", {"classifier": None, "image": "x", "command": []}, "spec.command", "at least 1 items"),
    job("arguments to the built-in trainer", {"args": ["--fast"]}, "spec.args", "move args to a script"),
    job(
        "two built-in trainers",
        {"forest": {"dataset": DIGITS}},
        "spec",
        "set exactly one of classifier, boosting, forest",
    ),
    job("a forest on GPUs", {"classifier": None, "forest": {"dataset": DIGITS}, "gpu": {}}, "spec.gpu", "remove gpu"),
    classic("arguments to boosting", {"boosting": {"dataset": DIGITS}, "args": ["-v"]}, "spec.args", "move args to"),
    classic(
        "unknown library", {"boosting": {"dataset": DIGITS, "library": "CatBoost"}}, "spec.boosting.library", "LightGBM"
    ),
    classic(
        "early stopping without test rows",
        {"boosting": {"dataset": {**DIGITS, "testFraction": 0}, "earlyStoppingRounds": 5}},
        "spec.boosting.earlyStoppingRounds",
        "set dataset.testFraction above 0",
    ),
    classic("no ratings", {"matrixFactorization": {"factors": 8}}, "spec.matrixFactorization.uri", "Required value"),
    classic(
        "alpha for explicit ratings",
        {"matrixFactorization": {"uri": "s3://a/b", "alpha": 2}},
        "spec.matrixFactorization.alpha",
        "set objective to Implicit or remove alpha",
    ),
    classic(
        "no penalty at all", {"matrixFactorization": {"uri": "s3://a/b", "regularization": 0}}, "", "greater than 0"
    ),
    classic(
        "negative penalty", {"logisticRegression": {"dataset": DIGITS, "l2": -1}}, "", "greater than or equal to 0"
    ),
    job("launcher of a built-in trainer", {"launcher": "XGBoost"}, "spec.launcher", "a command of your own: remove it"),
    job("unknown launcher", {"launcher": "Horovod"}, "spec.launcher", '"Torchrun", "XGBoost", "TensorFlow"'),
    classic(
        "the launcher's variable",
        {"command": ["a"], "image": "x", "launcher": "TensorFlow", "env": [{"name": "TF_CONFIG", "value": "{}"}]},
        "spec.env",
        "launcher TensorFlow sets TF_CONFIG: remove it from env",
    ),
    classic(
        "more workers than TF_CONFIG can name",
        {"command": ["a"], "image": "x", "launcher": "TensorFlow", "numWorkers": 300},
        "spec.numWorkers",
        "at most 256 workers",
    ),
    job("no workers", {"numWorkers": 0}, "spec.numWorkers", "greater than or equal to 1"),
    job("too many workers", {"numWorkers": 5000}, "spec.numWorkers", "less than or equal to 4096"),
    job("workers as text", {"numWorkers": "three"}, "spec.numWorkers", "must be of type integer"),
    job("unknown field", {"workers": 3}, "", 'unknown field "spec.workers"'),
    job("unknown field deep inside", {"topology": {"zones": 3}}, "", 'unknown field "spec.topology.zones"'),
    job("image with a space", {"image": "my image:1"}, "spec.image", "write an image such as"),
    job("unknown topology", {"topology": {"type": "Star"}}, "spec.topology.type", '"AllReduce"'),
    job("unknown all-reduce", {"topology": {"allReduce": "Star"}}, "spec.topology.allReduce", '"Ring"'),
    job(
        "unknown spread", {"topology": {"zoneSpread": "spread"}}, "spec.topology.zoneSpread", '"Spread", "Pack", "None"'
    ),
    job(
        "parameter servers without their settings",
        {"topology": {"type": "ParameterServer"}},
        "spec.topology.parameterServer",
        "set both or neither",
    ),
    job(
        "a pipeline without stages",
        {"topology": {"type": "Pipeline"}},
        "spec.topology.pipeline",
        "topology.pipeline goes with type Pipeline: set both or neither",
    ),
    job(
        "workers that are no multiple of the stages",
        {"numWorkers": 3, "topology": {"type": "Pipeline", "pipeline": {"stages": 2}}},
        "spec.topology",
        "make numWorkers (times gpu.count) a multiple of topology.pipeline.stages",
    ),
    job(
        "fewer layers than stages",
        {"topology": {"type": "Pipeline", "pipeline": {"stages": 3}}},
        "spec.classifier",
        "add sizes to classifier.hiddenSizes (n sizes make n+1 layers), or choose fewer stages",
    ),
    job(
        "an unknown schedule",
        {"topology": {"type": "Pipeline", "pipeline": {"stages": 3, "schedule": "ZeroBubble"}}},
        "spec.topology.pipeline.schedule",
        "1F1B",
    ),
    job(
        "sharding of a tree",
        {"topology": {"allReduce": "Tree", "sharding": "FullShard"}},
        "spec.topology.sharding",
        "go with type AllReduce and allReduce Ring: leave the others out",
    ),
    job(
        "layers split inside of zones that share a copy",
        {"numWorkers": 4, "topology": {"sharding": "HybridShard", "tensorParallel": 2}},
        "spec.topology.tensorParallel",
        "goes with sharding NoShard and FullShard",
    ),
    job(
        "three workers that share layers by two",
        {"topology": {"tensorParallel": 2}},
        "spec.topology",
        "make numWorkers (times gpu.count) a multiple of it",
    ),
    job(
        "layers that cannot be split evenly",
        {"topology": {"tensorParallel": 3}, "classifier": {"hiddenSizes": [64]}},
        "spec.classifier",
        "make every size in classifier.hiddenSizes a multiple of it",
    ),
    job(
        "MPI without a command",
        {"launcher": "MPI", "classifier": None, "script": {"path": "/a.py"}, "image": "x"},
        "spec.launcher",
        "set command and image",
    ),
    job(
        "GPUs from a claim that is not there",
        {"gpu": {"resourceClaim": "gpus"}, "resourceClaims": [{"name": "gpu", "resourceClaimName": "mine"}]},
        "spec.gpu",
        "add it there, or correct the name",
    ),
    job(
        "a claim of nothing",
        {"resourceClaims": [{"name": "gpus"}]},
        "spec.resourceClaims[0]",
        "set exactly one of resourceClaimTemplateName",
    ),
    job(
        "links of an image that has no agent",
        {"image": "registry.example/train:1", "topology": {"preflight": {}}},
        "spec.topology",
        "remove topology.preflight",
    ),
    job(
        "a bandwidth without a unit that there is",
        {"topology": {"preflight": {"minBandwidth": "100MB"}}},
        "spec.topology.preflight.minBandwidth",
        "write a quantity such as",
    ),
    job(
        "an elastic job whose workers share layers",
        {"numWorkers": 4, "minWorkers": 2, "maxWorkers": 4, "topology": {"tensorParallel": 2}},
        "spec.minWorkers",
        "remove minWorkers and maxWorkers, or set tensorParallel to 1",
    ),
    job(
        "inner steps of a topology that has none",
        {"topology": {"type": "AllReduce", "localSGD": {"innerSteps": 10}}},
        "spec.topology.localSGD",
        "set that type or remove localSGD",
    ),
    job(
        "an all-reduce of a pipeline",
        {"topology": {"type": "Pipeline", "pipeline": {"stages": 3}, "allReduce": "Tree"}},
        "spec.topology.allReduce",
        "leave it out with other types",
    ),
    job(
        "settings of servers without their type",
        {"topology": {"parameterServer": {"servers": 2}}},
        "spec.topology.parameterServer",
        "set both or neither",
    ),
    served("no servers", {"servers": 0}, "topology.parameterServer.servers", "greater than or equal to 1"),
    served(
        "staleness that nothing bounds",
        {"consistency": "Asynchronous", "staleness": 3},
        "topology.parameterServer.staleness",
        "set it there, and remove it elsewhere",
    ),
    served(
        "stale without a bound",
        {"consistency": "StaleSynchronous"},
        "topology.parameterServer.staleness",
        "bounds how far a worker may run ahead",
    ),
    served(
        "backup without rounds",
        {"backupWorkers": 1},
        "topology.parameterServer.backupWorkers",
        "set consistency Synchronous or remove backupWorkers",
    ),
    served(
        "nobody but backup",
        {"consistency": "Synchronous", "backupWorkers": 3},
        "topology",
        "must be fewer than numWorkers",
    ),
    served(
        "synchronous every other step",
        {"consistency": "Synchronous", "pushEvery": 2, "pullEvery": 2},
        "topology.parameterServer.pushEvery",
        "or choose Asynchronous",
    ),
    served(
        "a bound that would not hold",
        {"consistency": "StaleSynchronous", "staleness": 2, "pullEvery": 4},
        "topology.parameterServer.pullEvery",
        "set pullEvery to pushEvery",
    ),
    served(
        "ratio of another compression",
        {"compression": {"type": "Int8", "ratio": 0.1}},
        "topology.parameterServer.compression.ratio",
        "set type TopK or remove ratio",
    ),
    served(
        "rank of another compression",
        {"compression": {"type": "TopK", "rank": 2}},
        "topology.parameterServer.compression.rank",
        "set type PowerSGD or remove rank",
    ),
    served(
        "weights compressed by nothing",
        {"compression": {"weights": True}},
        "topology.parameterServer.compression.weights",
        "choose a type or remove weights",
    ),
    served(
        "most of the values as the largest",
        {"compression": {"type": "TopK", "ratio": 0.9}},
        "topology.parameterServer.compression.ratio",
        "less than or equal to 0.5",
    ),
    served(
        "unknown optimizer", {"optimizer": "LAMB"}, "topology.parameterServer.optimizer", '"SGD", "Adagrad", "Adam"'
    ),
    served("servers and several GPUs", {}, "gpu", "set gpu.count to 1", gpu={"count": 2}),
    job("no data", {"classifier": {"dataset": None}}, "spec.classifier.dataset", "Required value"),
    job(
        "two data sets",
        {"classifier": {"dataset": {"uri": "s3://data/x"}}},
        "spec.classifier.dataset",
        "set exactly one of uri (files in storage) and builtin",
    ),
    job(
        "unknown data set",
        {"classifier": {"dataset": {"builtin": "MNIST"}}},
        "spec.classifier.dataset.builtin",
        'supported values: "Digits"',
    ),
    job(
        "data by http",
        {"classifier": {"dataset": {"builtin": None, "uri": "http://data/x"}}},
        "spec.classifier.dataset.uri",
        STORAGE,
    ),
    job(
        "everything is a test",
        {"classifier": {"dataset": {"testFraction": 1.0}}},
        "spec.classifier.dataset.testFraction",
        "less than or equal to 0.9",
    ),
    job("no epochs", {"classifier": {"epochs": 0}}, "spec.classifier.epochs", "greater than or equal to 1"),
    job(
        "learning rate of zero",
        {"classifier": {"learningRate": 0}},
        "spec.classifier.learningRate",
        "should be greater than 0",
    ),
    job(
        "unknown optimizer of the classifier",
        {"classifier": {"optimizer": "adam"}},
        "spec.classifier.optimizer",
        '"Adam", "SGD"',
    ),
    job(
        "layer without units",
        {"classifier": {"hiddenSizes": [64, 0]}},
        "spec.classifier.hiddenSizes[1]",
        "greater than or equal to 1",
    ),
    job(
        "fewer rows than workers",
        {"classifier": {"batchSize": 2}},
        "spec.classifier",
        "raise it to numWorkers (times gpu.count), or ask for fewer workers",
    ),
    job(
        "fewer rows than GPUs",
        {"classifier": {"batchSize": 8}, "gpu": {"count": 8}},
        "spec.classifier",
        "raise it to numWorkers (times gpu.count)",
    ),
    job("negative seed", {"classifier": {"seed": -1}}, "spec.classifier.seed", "greater than or equal to 0"),
    script("script from nowhere", {}, "spec.script", "set exactly one of configMap, git and path"),
    script(
        "script from two places",
        {"git": GIT, "configMap": {"name": "a", "key": "b"}},
        "spec.script",
        "set exactly one of configMap, git and path",
    ),
    script(
        "script in no image", {"path": "/train.py"}, "spec.image", "script.path is a file inside the image: set image"
    ),
    script("ConfigMap without key", {"configMap": {"name": "a"}}, "spec.script.configMap.key", "Required value"),
    script(
        "ConfigMap's name in capitals",
        {"configMap": {"name": "Train", "key": "train.py"}},
        "spec.script.configMap.name",
        "lower case letters, digits, '-' and '.'",
    ),
    script(
        "repository as scp address",
        {"git": GIT | {"repo": "git@git.example:team/models"}},
        "spec.script.git.repo",
        "write a repository's URL such as https://",
    ),
    script("option as ref", {"git": GIT | {"ref": "--upload-pack=x"}}, "spec.script.git.ref", "write a branch, a tag"),
    script(
        "path outside the repository",
        {"git": GIT | {"path": "a/../../b.py"}},
        "spec.script.git.path",
        "path from the repository's root",
    ),
    script(
        "absolute path in the repository",
        {"git": GIT | {"path": "/train.py"}},
        "spec.script.git.path",
        "path from the repository's root, such as training/train.py",
    ),
    script(
        "password for ssh",
        {"git": GIT | {"repo": "ssh://git.example/models", "secretRef": {"name": "a"}}},
        "spec.script.git.secretRef",
        "change repo or leave secretRef out",
    ),
    job("no GPUs", {"gpu": {"count": 0}}, "spec.gpu.count", "greater than or equal to 1"),
    job(
        "GPU resource without domain",
        {"gpu": {"resourceName": "gpu"}},
        "spec.gpu.resourceName",
        "such as nvidia.com/gpu",
    ),
    job(
        "GPUs twice",
        {"gpu": {"count": 1}, "resources": {"limits": {"nvidia.com/gpu": 1}}},
        "spec.resources",
        "the GPU resource is set by gpu.count: remove it from resources",
    ),
    job("storage without address", {"storage": {}}, "spec.storage.uri", "Required value"),
    job("storage by gs", {"storage": {"uri": "gs://bucket/x"}}, "spec.storage.uri", STORAGE),
    job("interval without unit", {"checkpoint": {"interval": "30"}}, "spec.checkpoint.interval", DURATION),
    job("interval in words", {"checkpoint": {"interval": "30 seconds"}}, "spec.checkpoint.interval", DURATION),
    job("no checkpoint kept", {"checkpoint": {"keep": 0}}, "spec.checkpoint.keep", "greater than or equal to 1"),
    job(
        "best of what",
        {"checkpoint": {"best": {"mode": "Min"}}},
        "spec.checkpoint.best.metric",
        "Required value",
    ),
    job(
        "best in no direction",
        {"checkpoint": {"best": {"metric": "loss", "mode": "min"}}},
        "spec.checkpoint.best.mode",
        '"Min", "Max"',
    ),
    job("unknown writers", {"checkpoint": {"writers": "All"}}, "spec.checkpoint.writers", '"RankZero", "AllRanks"'),
    job(
        "gate without a bound",
        {"evaluation": {"metric": "accuracy"}},
        "spec.evaluation",
        "set min (the metric may not be below), max (it may not be above), or both",
    ),
    job(
        "gate that nothing passes",
        {"evaluation": {"metric": "accuracy", "min": 0.9, "max": 0.5}},
        "spec.evaluation",
        "min is above max, so no model can pass",
    ),
    job(
        "registry without scheme",
        {"registry": {"trackingUri": "mlflow:5000", "model": "digits"}},
        "spec.registry.trackingUri",
        "write the address of an MLflow server such as http://",
    ),
    job(
        "registered name with a slash",
        {"registry": {"trackingUri": "http://mlflow:5000", "model": "team/digits"}},
        "spec.registry.model",
        "write a model's name without / : . %",
    ),
    job(
        "alias that is a number",
        {"registry": {"trackingUri": "http://mlflow:5000", "model": "digits", "alias": "1"}},
        "spec.registry.alias",
        "such as champion",
    ),
    job(
        "registry's address taken by hand",
        {"env": [{"name": "HEADRACE_REGISTRY", "value": "{}"}]},
        "spec.env",
        "remove them from env",
    ),
    job(
        "elastic bounds reversed",
        {"minWorkers": 4, "maxWorkers": 2},
        "spec.numWorkers",
        "minWorkers is not the greater of the two",
    ),
    job(
        "more workers than the upper bound",
        {"minWorkers": 1, "maxWorkers": 2},
        "spec.numWorkers",
        "lies between minWorkers and maxWorkers",
    ),
    job("one elastic bound", {"minWorkers": 2}, "spec.minWorkers", "set both minWorkers and maxWorkers, or neither"),
    job(
        "elastic in an image of its own",
        {"minWorkers": 2, "maxWorkers": 4, "image": "team/trainer:1"},
        "spec.minWorkers",
        "in the platform's image",
    ),
    job("a hang after no time", {"restartPolicy": {"hangTimeout": "0s"}}, "spec.restartPolicy.hangTimeout", "0s"),
    job("a window in words", {"restartPolicy": {"window": "an hour"}}, "spec.restartPolicy.window", "30s"),
    job("negative restarts", {"restartPolicy": {"maxRestarts": -1}}, "spec.restartPolicy.maxRestarts", "equal to 0"),
    job(
        "memory in words",
        {"resources": {"requests": {"memory": "1 GB"}}},
        "spec.resources.requests[memory]",
        "write a quantity such as 500m, 2 or 1Gi",
    ),
    job(
        "request above limit",
        {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1024Mi"}}},
        "spec.resources.requests",
        "raise the limit or lower the request",
    ),
    job(
        "variable twice",
        {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "spec.env[1]",
        "Duplicate value",
        python=False,
    ),
    job(
        "variable with value and source",
        {"env": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]},
        "spec.env[0].valueFrom",
        "set value or valueFrom, not both",
    ),
    job(
        "variable's name with =", {"env": [{"name": "A=B", "value": "1"}]}, "spec.env[0].name", "without '=' or spaces"
    ),
    job("variable as number", {"env": [{"name": "A", "value": 1}]}, "spec.env[0].value", "must be of type string"),
    job("variable of torchrun", {"env": [{"name": "RANK", "value": "1"}]}, "spec.env", "remove them from env"),
    job(
        "name too long",
        {},
        "metadata",
        "at most 51 characters, so that <name>-worker-<rank> fits in 63: choose a shorter name",
        python=False,
        metadata={"name": "a" * 52},
    ),
    job(
        "name starts with a digit",
        {},
        "metadata",
        "it names a Service, so start with a letter",
        python=False,
        metadata={"name": "7days"},
    ),
)

SERVICES: tuple[Bad, ...] = (
    service("no predictor", {"predictor": None}, "spec.predictor", "Required value"),
    service("no model", {"predictor": {"model": None}}, "spec.predictor", "set exactly one of model and container"),
    predictor(
        "no address", {"model": {"storageUri": None}}, "model", "exactly one of storageUri, registry and trainin"
    ),
    predictor(
        "two addresses",
        {"model": {"trainingJobRef": {"name": "x"}}},
        "model",
        "exactly one of storageUri, registry and",
    ),
    predictor("Python without code", {"model": {"modelFormat": "Python"}}, "model.code", "Python needs code"),
    predictor(
        "code of two places",
        {"model": {"modelFormat": "Python", "code": {"configMap": {"name": "x", "key": "x.py"}, "git": GIT}}},
        "model.code",
        "set exactly one of configMap and git",
    ),
    predictor("trusted types of ONNX", {"model": {"trustedTypes": ["a.B"]}}, "model.trustedTypes", "leave them out"),
    predictor(
        "registry without version",
        {"model": {"storageUri": None, "registry": {"trackingUri": "http://mlflow", "model": "m"}}},
        "model.registry",
        "set exactly one of version and alias",
    ),
    predictor(
        "container without image", {"model": None, "container": {}}, "image", "in an image of your own: set image"
    ),
    predictor(
        "PyTorch in the router",
        {"inference": "Local", "model": {"modelFormat": "PyTorch"}},
        "inference",
        "convert the model to ONNX, or set inference: Remote",
    ),
    predictor(
        "batching in the router", {"inference": "Local", "batching": {}}, "batching", "for a model in pods of its own"
    ),
    service("log of nothing", {"requestLog": {"percent": 0}}, "spec.requestLog.percent", "greater than or equal to 1"),
    service(
        "canary of a model in the router",
        {"predictor": {"inference": "Local"}, "canary": {"env": [{"name": "A", "value": "b"}]}},
        "spec.canary",
        "a canary stands beside pods of the predictor",
    ),
    service(
        "fallback of PMML",
        {"fallback": [{"name": "x", "model": {"storageUri": "s3://m/x", "modelFormat": "PMML"}}]},
        "spec.fallback[0].model",
        "a fallback model runs inside the router",
    ),
    predictor("model by http", {"model": {"storageUri": "https://x/y"}}, "model.storageUri", STORAGE),
    predictor("pickled model", {"model": {"modelFormat": "Pickle"}}, "model.modelFormat", 'supported values: "ONNX"'),
    predictor("no replicas", {"minReplicas": 0}, "minReplicas", "greater than or equal to 1"),
    predictor(
        "most below least",
        {"minReplicas": 3, "maxReplicas": 2},
        "maxReplicas",
        "maxReplicas must be at least minReplicas",
    ),
    predictor(
        "CPU target above 100", {"targetCpuUtilization": 150}, "targetCpuUtilization", "less than or equal to 100"
    ),
    predictor("no time", {"timeout": "0s"}, "timeout", "above zero"),
    predictor("time as number", {"timeout": 1}, "timeout", "must be of type string"),
    predictor("time without unit", {"timeout": "100"}, "timeout", DURATION),
    predictor("no concurrency", {"maxConcurrency": 0}, "maxConcurrency", "greater than or equal to 1"),
    predictor(
        "breaker that never opens",
        {"circuitBreaker": {"slidingWindowSize": 4}},
        "circuitBreaker.minimumNumberOfCalls",
        "must not exceed slidingWindowSize, or the breaker never opens",
    ),
    predictor(
        "failure rate above 100",
        {"circuitBreaker": {"failureRateThreshold": 101}},
        "circuitBreaker.failureRateThreshold",
        "less than or equal to 100",
    ),
    predictor(
        "breaker that never rests",
        {"circuitBreaker": {"waitDurationInOpenState": "0ms"}},
        "circuitBreaker.waitDurationInOpenState",
        "above zero",
    ),
    predictor(
        "request above limit",
        {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}},
        "resources.requests",
        "raise the limit or lower the request",
    ),
    predictor(
        "pull secret twice",
        {"imagePullSecrets": [{"name": "a"}, {"name": "a"}]},
        "imagePullSecrets[1]",
        "Duplicate value",
        python=False,
    ),
    predictor("account in capitals", {"serviceAccountName": "Model"}, "serviceAccountName", "lower case letters"),
    service("no routers", {"router": {"replicas": 0}}, "spec.router.replicas", "greater than or equal to 1"),
    service("unknown field", {"replicas": 2}, "", 'unknown field "spec.replicas"'),
    fallback("step without name", [{"static": STATIC}], "spec.fallback[0].name", "Required value"),
    fallback("step that is nothing", [{"name": "a"}], "spec.fallback[0]", "set exactly one of model, static and"),
    fallback(
        "step that is both", [{"name": "a", "model": MODEL, "static": STATIC}], "spec.fallback[0]", "set exactly one of"
    ),
    fallback(
        "step twice",
        [{"name": "a", "model": MODEL}, {"name": "a", "model": MODEL}],
        "spec.fallback[1]",
        "Duplicate value",
        python=False,
    ),
    fallback(
        "step called predictor",
        [{"name": "predictor", "model": MODEL}],
        "spec.fallback",
        "give the fallback step another name",
    ),
    fallback(
        "step's name in capitals",
        [{"name": "Small", "model": MODEL}],
        "spec.fallback[0].name",
        "use lower case letters",
    ),
    fallback(
        "step after a static response",
        [{"name": "a", "static": STATIC}, {"name": "b", "model": MODEL}],
        "spec.fallback",
        "no step after it is ever asked: put it last",
    ),
    fallback("nine steps", [{"name": f"s{i}", "model": MODEL} for i in range(9)], "spec.fallback", "at most 8 items"),
    fallback(
        "response without outputs",
        [{"name": "a", "static": {"outputs": []}}],
        "spec.fallback[0].static.outputs",
        "at least 1 items",
    ),
    tensor(
        "unknown datatype",
        {"name": "a", "datatype": "FLOAT", "data": [1]},
        "spec.fallback[0].static.outputs[0].datatype",
        '"FP32"',
    ),
    tensor(
        "dimension of zero",
        {"name": "a", "datatype": "FP32", "shape": [0], "data": []},
        "spec.fallback[0].static.outputs[0].shape[0]",
        "greater than or equal to 1",
    ),
    tensor("no data", {"name": "a", "datatype": "FP32"}, "spec.fallback[0].static.outputs[0].data", "Required value"),
    service(
        "name too long",
        {},
        "metadata",
        "at most 53 characters, so that <name>-predictor fits in 63",
        python=False,
        metadata={"name": "a" * 54},
    ),
    service(
        "name with a dot",
        {},
        "metadata",
        "use lower case letters, digits and '-'",
        python=False,
        metadata={"name": "a.b"},
    ),
    service(
        "canary that changes nothing",
        {"canary": {"minReplicas": 2}},
        "spec.canary",
        "set model, image, resources or env",
    ),
    fallback(
        "step named like the canary", [{"name": "canary", "static": STATIC}], "spec.fallback", "give the fallback step"
    ),
    fallback(
        "an answer of no age",
        [{"name": "a", "lastAnswer": {"maxAge": "0s"}}],
        "spec.fallback[0].lastAnswer.maxAge",
        "above zero",
    ),
    predictor("a reason that is none", {"fallbackOn": ["Slow"]}, "fallbackOn[0]", '"Timeout", "Error"'),
    predictor("hedged at once", {"hedgeAfter": "0s"}, "hedgeAfter", "above zero"),
    predictor(
        "no error is enough", {"outlierDetection": {"consecutive5xx": 0}}, "outlierDetection.consecutive5xx", "to 1"
    ),
    service("a tolerance below zero", {"shadow": {"model": MODEL, "tolerance": {"absolute": -1}}}, "", "equal to 0"),
    service("a shadow of nothing", {"shadow": {"percent": 10}}, "spec.shadow.model", "Required value"),
    service("no time for all", {"timeout": "0s"}, "spec.timeout", "above zero"),
    service(
        "a shadow's model beside a container",
        {"predictor": {"model": None, "container": {}, "image": "x"}, "shadow": {"model": MODEL}},
        "spec.predictor",
        "set predictor.model",
    ),
    canary("steps that fall", {"steps": [{"percent": 50}, {"percent": 5}]}, "steps", "percents of steps must ascend"),
    canary("the same step twice", {"steps": [{"percent": 5}, {"percent": 5}]}, "steps[1]", "Duplicate value"),
    canary("more than all requests", {"steps": [{"percent": 101}]}, "steps[0].percent", "less than or equal to 100"),
    canary("no step", {"steps": []}, "steps", "at least 1 items"),
    canary("a pause of nothing", {"steps": [{"percent": 5, "pause": "0s"}]}, "steps[0].pause", "above zero"),
    canary("an error rate beyond percent", {"analysis": {"maxErrorRate": 101}}, "analysis.maxErrorRate", "to 100"),
    canary("no request is enough", {"analysis": {"minimumRequests": 0}}, "analysis.minimumRequests", "equal to 1"),
    service(
        "a header with a space",
        {"allocation": {"unitHeader": "user id"}},
        "spec.allocation.unitHeader",
        "write the name of a request header",
    ),
    predictor(
        "a window of weeks",
        {"circuitBreaker": {"slidingWindowType": "Weekly"}},
        "circuitBreaker.slidingWindowType",
        '"CountBased", "TimeBased"',
    ),
)

BAD: tuple[Bad, ...] = (*JOBS, *SERVICES)
