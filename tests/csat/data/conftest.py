"""What the tests of the data layer share: small pyramids, and a bucket behind a real S3 server on this machine."""

import boto3
import pytest
import tifffile
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="session")
def write_slide():
    """`write_slide(path, pixels, mpp=0.5, shrinks=(1, 4), **kwargs)` writes a lossless, tiled pyramid for OpenSlide."""

    def write(path, pixels, *, mpp=0.5, shrinks=(1, 4), description=None, **kwargs):
        resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
        with tifffile.TiffWriter(path) as writer:
            for shrink in shrinks:
                writer.write(
                    pixels[::shrink, ::shrink],
                    tile=(256, 256),
                    photometric="rgb",
                    compression="zlib",
                    subfiletype=int(shrink > 1),
                    description=description or "",
                    metadata=None,
                    **resolution,
                    **kwargs,
                )
        return path

    return write


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server on the loopback interface: real HTTP, real multipart, no mocking of clients."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch, request):
    """A fresh bucket, as "s3://name", reached through the standard environment as a user would."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    bucket = f"bucket-{abs(hash(request.node.nodeid)):x}"[:60]
    client.create_bucket(Bucket=bucket)
    yield f"s3://{bucket}"
    for item in client.list_objects_v2(Bucket=bucket).get("Contents", []):
        client.delete_object(Bucket=bucket, Key=item["Key"])
    client.delete_bucket(Bucket=bucket)
