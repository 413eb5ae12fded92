"""Drives the worker with AWS's own client on two servers of Lambda's API, and holds their answers against each other.

    lambda_drive.py SETUP.json

SETUP has `sides` (the endpoints of `freestone` and `narrow` on each), `calls` (invocations by name), `slow` (one that takes a while) and
`event` (for each side an invocation and the file that it writes). Prints `ok NAME` for what holds; ends with an error at what does not.

Where the second server, ministack, differs from AWS: it refuses no request for its length, and answers `null` where a body is no JSON. These
two are asked of ours alone.
"""

import json
import pathlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

# What differs from one invocation to the next.
VOLATILE = {"id", "invocations", "had_plan", "init_ms", "peak_bytes", "worker", "worker_peak_bytes", "cpu_ns", "wall_ns", "wall_ms", "remaining_ms"}


def client(endpoint, attempts=1):
    config = Config(retries={"mode": "standard", "total_max_attempts": attempts}, max_pool_connections=32, read_timeout=60)
    return boto3.client("lambda", endpoint_url=endpoint, config=config)


def lasting(value, inside=""):
    """An answer without what differs each time."""
    if isinstance(value, list):
        return sorted((lasting(v, inside) for v in value), key=json.dumps)
    if isinstance(value, dict):
        # The id of a request is ours.
        return {k: lasting(v, k) for k, v in value.items() if k not in VOLATILE or (k == "id" and inside == "request")}
    return value


def call(side, body, name="freestone", **more):
    return side.invoke(FunctionName=name, Payload=json.dumps(body).encode(), **more)


def answer(reply):
    assert reply["StatusCode"] == 200 and "FunctionError" not in reply, reply
    assert reply["ExecutedVersion"] == "$LATEST", reply
    return json.loads(reply["Payload"].read())


def refused(kind, side, *arguments, **more):
    """The error of a call, which must be of a type of the client's."""
    try:
        reply = side.invoke(*arguments, **more)
    except ClientError as error:
        assert type(error).__name__ == kind and isinstance(error, getattr(side.exceptions, kind)), error
        return error
    raise AssertionError(f"{kind} was expected, not {reply}")


def crowd(side, body, n):
    """Outcomes of `n` calls of `narrow` at once: answers, and refusals for their number."""

    def one(_):
        try:
            return "answer", answer(call(side, body, "narrow"))
        except side.exceptions.TooManyRequestsException as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 429, error.response
            return "refusal", error.response.get("Reason")

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(one, range(n)))


def main():
    setup = json.loads(pathlib.Path(sys.argv[1]).read_text())
    sides = {name: client(ends["freestone"]) for name, ends in setup["sides"].items()}
    for name, body in setup["calls"].items():
        found = {side: lasting(answer(call(sides[side], body))) for side in sides}
        assert len({json.dumps(f, sort_keys=True) for f in found.values()}) == 1, f"{name}: {json.dumps(found, indent=1)}"
        kind = next(iter(next(iter(found.values()))))
        print(f"ok {name}: {kind} on both")
    for side, each in sides.items():
        error = refused("ResourceNotFoundException", each, FunctionName="nobody", Payload=b"{}")
        assert "nobody" in str(error), error
        print(f"ok {side}: a function that is not there")
        assert call(each, {}, InvocationType="DryRun")["StatusCode"] == 204
        print(f"ok {side}: a dry run")
        event = setup["event"][side]
        assert call(each, event["body"], InvocationType="Event")["StatusCode"] == 202
        end = time.monotonic() + 20
        while not pathlib.Path(event["file"]).exists():
            assert time.monotonic() < end, "the event was never handled"
            time.sleep(0.02)
        print(f"ok {side}: an event")
        narrow = setup["sides"][side]["narrow"]
        found = crowd(client(narrow), setup["slow"], 6)
        reasons = {what for kind, what in found if kind == "refusal"}
        assert 1 <= sum(kind == "answer" for kind, _ in found) < 6, found
        assert reasons == {"ReservedFunctionConcurrentInvocationLimitExceeded"}, reasons
        print(f"ok {side}: more calls than it may have at once, {len([1 for k, _ in found if k == 'refusal'])} of 6 refused")
        found = crowd(client(narrow, attempts=20), setup["slow"], 4)
        assert all(kind == "answer" for kind, _ in found), found
        print(f"ok {side}: the client's own retries")
    ours = sides["ours"]
    refused("RequestTooLargeException", ours, FunctionName="freestone", Payload=b'"' + b"x" * (6 << 20) + b'"')
    print("ok ours: a request that is too long")
    refused("InvalidRequestContentException", ours, FunctionName="freestone", Payload=b"{")
    print("ok ours: a request that is no JSON")


main()
