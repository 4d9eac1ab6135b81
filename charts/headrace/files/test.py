"""What `helm test` asks: does the API server serve the kinds, and does the default storage answer?"""

import json
import os
import ssl
import sys
import urllib.request

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def served_kinds() -> set[str]:
    with open(f"{ACCOUNT}/token") as file:
        headers = {"Authorization": f"Bearer {file.read()}"}
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}/apis/headrace.dev/v1alpha1"
    context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10, context=context) as answer:
        return {resource["kind"] for resource in json.load(answer)["resources"]}


def storage_answers() -> str:
    from pyarrow import fs

    uri = os.environ["HEADRACE_STORAGE_URI"]
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    filesystem = fs.S3FileSystem(endpoint_override=endpoint, region=os.environ["AWS_REGION"])
    bucket = uri.removeprefix("s3://").partition("/")[0]
    filesystem.get_file_info(fs.FileSelector(bucket))
    return f"bucket {bucket} at {endpoint or 'AWS'}"


missing = {"InferenceService", "TrainingJob"} - served_kinds()
if missing:
    sys.exit(f"the API server does not serve {', '.join(sorted(missing))}: upgrade with crds.enabled=true")
print("the API server serves every kind")
if os.environ["HEADRACE_STORAGE_URI"].startswith("s3://"):
    print(f"the default storage answers: {storage_answers()}")
