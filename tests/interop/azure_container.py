"""Creates a container on Azurite, whose account and key are public constants of the emulator.

    azure_container.py ENDPOINT CONTAINER
"""

import base64
import hashlib
import hmac
import sys
import urllib.request
from email.utils import formatdate

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

endpoint, container = sys.argv[1:]
headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
# The form "Shared Key" of a request without a body and without other headers.
signed = "PUT" + "\n" * 12 + "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
signed += f"/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
digest = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
headers["Content-Length"] = "0"
url = f"{endpoint}/{ACCOUNT}/{container}?restype=container"
urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)).close()
