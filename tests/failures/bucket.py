"""A real S3 server on the loopback interface, behind a proxy that spoils answers."""

import logging

import boto3

from tests.failures.proxy import FaultyStore

BUCKET = "lab"


class Bucket:
    """A real S3 server on loopback. The cluster sees it through `proxy`, which spoils answers; the lab itself does not."""

    def __init__(self):
        from moto.server import ThreadedMotoServer  # slow to import: most faults need no bucket

        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for every request
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "not-so-secret", "region_name": "us-east-1"}
        self.client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys)
        self.client.create_bucket(Bucket=BUCKET)
        self.proxy = FaultyStore(f"http://{host}:{port}")

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which a user's programs find the bucket."""
        return {
            "AWS_ENDPOINT_URL": self.proxy.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "not-so-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "2",
            "NO_PROXY": "127.0.0.0/8,localhost",
        }

    def put(self, name: str, data: bytes) -> str:
        """Store an object; its URI."""
        self.client.put_object(Bucket=BUCKET, Key=name, Body=data)
        return f"s3://{BUCKET}/{name}"

    def delete(self, name: str) -> None:
        """Remove an object."""
        self.client.delete_object(Bucket=BUCKET, Key=name)

    def read(self, name: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        try:
            return self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None

    def close(self) -> None:
        """End proxy and server."""
        self.proxy.close()
        self._server.stop()
