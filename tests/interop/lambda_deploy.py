"""Creates the worker's functions on a server of Lambda's API, from the package: `freestone`, and `narrow`, which runs once at a time.

    lambda_deploy.py ENDPOINT PACKAGE
"""

import os
import sys

import boto3

endpoint, package = sys.argv[1:]
client = boto3.client("lambda", endpoint_url=endpoint)
with open(package, "rb") as file:
    code = file.read()
# What workers need to find the object store; their credentials are their role's.
variables = {name: os.environ[name] for name in ("AWS_ENDPOINT", "AWS_ALLOW_HTTP")}
for name in ("freestone", "narrow"):
    client.create_function(
        FunctionName=name,
        Runtime="provided.al2023",
        Handler="bootstrap",
        Role="arn:aws:iam::000000000000:role/freestone",
        Code={"ZipFile": code},
        MemorySize=256,
        Timeout=30,
        Environment={"Variables": variables},
    )
    client.get_waiter("function_active_v2").wait(FunctionName=name)
client.put_function_concurrency(FunctionName="narrow", ReservedConcurrentExecutions=1)
