"""What `helm test` asks: does the API server serve the kinds, and does the default storage answer?"""

import json
import os
import ssl
import sys
import time
import urllib.request

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
KINDS = {"InferenceService", "TrainingJob"}
DEADLINE = time.monotonic() + 60


def kinds_are_served() -> str:
    with open(f"{ACCOUNT}/token") as file:
        headers = {"Authorization": f"Bearer {file.read()}"}
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}/apis/headrace.dev/v1alpha1"
    context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    # Clusters' own CAs often lack the extensions that strict checks ask for; the chain is verified all the same.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10, context=context) as answer:
        missing = KINDS - {resource["kind"] for resource in json.load(answer)["resources"]}
    if missing:
        raise OSError(f"the API server does not serve {', '.join(sorted(missing))}: upgrade with crds.enabled=true")
    return "the API server serves every kind"


def storage_answers() -> str:
    from pyarrow import fs

    uri = os.environ["HEADRACE_STORAGE_URI"]
    if not uri.startswith("s3://"):
        return f"storage at {uri} is not asked: this test speaks S3"
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    filesystem = fs.S3FileSystem(endpoint_override=endpoint, region=os.environ["AWS_REGION"])
    bucket = uri.removeprefix("s3://").partition("/")[0]
    filesystem.get_file_info(fs.FileSelector(bucket))
    return f"bucket {bucket} at {endpoint or 'AWS'} answers"


for question in (kinds_are_served, storage_answers):
    while True:
        try:
            print(question(), flush=True)
            break
        except OSError as error:  # pyarrow's and urllib's are among them
            if time.monotonic() > DEADLINE:
                sys.exit(f"{question.__name__}: {error}")
            print(f"{question.__name__}, not yet: {error}", flush=True)
            time.sleep(2)
