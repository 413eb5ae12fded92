"""The XML APIs of Google Cloud Storage and S3 in memory, on the loopback interface: puts with preconditions, ranges, listings, copies,
deletions.

    object_server.py PORT BUCKET gs
    object_server.py PORT BUCKET s3 [REQUESTS]

No emulator of Google Cloud Storage that can be installed checks `x-goog-if-generation-match` in this API, on which locks and commits
depend. With `gs`, objects are readable without credentials, as those of a public bucket are. With `s3`, botocore computes the signature
of each request again. The secret of the key `KEY` is `secret-KEY`. Keys whose name begins with `temporary-` need the token `token-KEY`;
after REQUESTS requests, a request with such a key is answered with `ExpiredToken`.
"""

import collections
import hashlib
import re
import sys
import threading
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

LOCK = threading.Lock()
# Key: (content, generation, time of the last change).
OBJECTS = {}
# Small, so that listings have several pages.
PAGE = 50
last_generation = 1_700_000_000_000_000


class Refused(Exception):
    def __init__(self, status, code):
        self.status, self.code = status, code


def put(key, content, headers):
    global last_generation
    with LOCK:
        there = OBJECTS.get(key)
        generation = there[1] if there else "0"
        wanted = headers.get("x-goog-if-generation-match") or headers.get("If-Match", "").strip('"')
        if wanted and wanted != generation or headers.get("If-None-Match") == "*" and there:
            raise Refused(412, "PreconditionFailed")
        last_generation += 1
        OBJECTS[key] = (content, str(last_generation), formatdate(usegmt=True))
        return OBJECTS[key]


def found(key):
    with LOCK:
        if key not in OBJECTS:
            raise Refused(404, "NoSuchKey")
        return OBJECTS[key]


def part(text, size):
    """The first and the end of the bytes of a header `Range`."""
    first, _, last = text.removeprefix("bytes=").partition("-")
    start, end = (int(first), min(int(last or size) + 1, size)) if first else (max(size - int(last), 0), size)
    if start >= end:
        raise Refused(416, "InvalidRange")
    return start, end


def listing(bucket, query):
    value = lambda name: query.get(name, [""])[0]
    prefix, delimiter = value("prefix"), value("delimiter")
    after = value("continuation-token") or value("start-after")
    with LOCK:
        objects = sorted((k, len(o[0]), o[1], o[2]) for k, o in OBJECTS.items() if k.startswith(prefix))
    rows, last, truncated = [], "", False
    for key, size, generation, modified in objects:
        rest = key[len(prefix) :]
        folder = prefix + rest.split(delimiter)[0] + delimiter if delimiter and delimiter in rest else None
        name = folder or key
        if name <= after or name == last:
            continue
        if len(rows) == min(PAGE, int(value("max-keys") or PAGE)):
            truncated = True
            break
        last = name
        if folder:
            rows.append(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>")
        else:
            when = parsedate_to_datetime(modified).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            rows.append(
                f"<Contents><Key>{escape(key)}</Key><Generation>{generation}</Generation><Size>{size}</Size>"
                f"<LastModified>{when}</LastModified><ETag>&quot;{generation}&quot;</ETag></Contents>"
            )
    token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if truncated else ""
    head = f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>{str(truncated).lower()}</IsTruncated>"
    return f"<?xml version='1.0'?><ListBucketResult>{head}{token}{''.join(rows)}</ListBucketResult>".encode()


def check_signature(handler, body):
    fields = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d+/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+), ?Signature=(\w+)",
        handler.headers.get("Authorization", ""),
    )
    if fields is None:
        raise Refused(403, "AccessDenied")
    key, region, names, signature = fields.groups()
    signed = {name: handler.headers[name] for name in names.split(";")}
    token = handler.headers.get("x-amz-security-token")
    if key.startswith("temporary-"):
        with LOCK:
            REQUESTS[key] += 1
            expired = REQUESTS[key] > LIMIT
        if token != f"token-{key}":
            raise Refused(403, "InvalidToken")
        if expired:
            raise Refused(400, "ExpiredToken")
    content = signed.get("x-amz-content-sha256")
    if content not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
        raise Refused(400, "XAmzContentSHA256Mismatch")
    request = AWSRequest(handler.command, f"http://{handler.headers['Host']}{handler.path}", signed, body)
    request.context["timestamp"] = signed["x-amz-date"]
    signer = S3SigV4Auth(Credentials(key, f"secret-{key}"), "s3", region)
    expected = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    if expected != signature:
        raise Refused(403, "SignatureDoesNotMatch")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def reply(self, status, content=b"", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def serve(self):
        # The body is read in any case, as the next request follows it.
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        bucket, _, key = url.path.lstrip("/").partition("/")
        try:
            if unquote(bucket) != BUCKET:
                raise Refused(404, "NoSuchBucket")
            if DIALECT == "s3":
                check_signature(self, body)
            self.answer(unquote(key), parse_qs(url.query, keep_blank_values=True), body)
        except Refused as refused:
            text = f"<?xml version='1.0'?><Error><Code>{refused.code}</Code><Message>{refused.code}</Message></Error>"
            self.reply(refused.status, text.encode())

    def answer(self, key, query, body):
        if self.command == "PUT":
            source = self.headers.get("x-goog-copy-source") or self.headers.get("x-amz-copy-source")
            if source:
                body = found(unquote(source).lstrip("/").partition("/")[2])[0]
            _, generation, _ = put(key, body, self.headers)
            text = f"<CopyObjectResult><ETag>{generation}</ETag></CopyObjectResult>" if source else ""
            self.reply(200, text.encode(), [("ETag", f'"{generation}"'), ("x-goog-generation", generation)])
        elif self.command == "POST" and "delete" in query:
            keys = [unescape(name) for name in re.findall("<Key>(.*?)</Key>", body.decode())]
            with LOCK:
                for name in keys:
                    OBJECTS.pop(name, None)
            rows = "".join(f"<Deleted><Key>{escape(name)}</Key></Deleted>" for name in keys)
            self.reply(200, f"<DeleteResult>{rows}</DeleteResult>".encode())
        elif self.command == "DELETE":
            if DIALECT == "gs":
                found(key)
            with LOCK:
                OBJECTS.pop(key, None)
            self.reply(204)
        elif not key:
            self.reply(200, listing(bucket=BUCKET, query=query), [("Content-Type", "application/xml")])
        else:
            content, generation, modified = found(key)
            if query.get("generation", [generation]) != [generation]:
                raise Refused(404, "NoSuchKey")
            headers = [("ETag", f'"{generation}"'), ("x-goog-generation", generation), ("Last-Modified", modified)]
            status, size = 200, len(content)
            if "Range" in self.headers:
                start, end = part(self.headers["Range"], size)
                headers.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
                status, content = 206, content[start:end]
            self.reply(status, content, headers)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

    def log_message(self, *_):
        pass


PORT, BUCKET, DIALECT, *more = sys.argv[1:]
REQUESTS = collections.Counter()
LIMIT = float(more[0]) if more else float("inf")
if DIALECT == "s3":
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials
ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("127.0.0.1", int(PORT)), Handler).serve_forever()
