"""CloudWatch Logs on loopback, by moto."""

import logging

import boto3
from moto.server import ThreadedMotoServer

from edge import free_port


class CloudWatch:
    """The CloudWatch Logs of moto in this process. It keeps its events while it is down."""

    configuration = "cloudwatch.conf"

    def __init__(self, directory):
        self.groups = {"audit": f"{directory}/audit", "log": f"{directory}/logs"}
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.port, self.server = free_port(), None
        self.settings = {
            "SHIP_CLOUDWATCH_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "SHIP_CLOUDWATCH_AUDIT_GROUP": self.groups["audit"],
            "SHIP_CLOUDWATCH_LOG_GROUP": self.groups["log"],
        }
        credentials = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "eu-central-1"}
        self.client = boto3.client("logs", endpoint_url=self.settings["SHIP_CLOUDWATCH_ENDPOINT"], **credentials)
        self.up()
        for group in self.groups.values():
            self.client.create_log_group(logGroupName=group)
        self.down()

    def up(self):
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def down(self):
        self.server.stop()

    def received(self, kind):
        streams = self.client.describe_log_streams(logGroupName=self.groups[kind])["logStreams"]
        if not streams:
            return []
        assert [stream["logStreamName"] for stream in streams] == ["edge-1"]
        found, token = [], {}
        while True:
            page = self.client.get_log_events(
                logGroupName=self.groups[kind], logStreamName="edge-1", startFromHead=True, **token
            )
            if not page["events"]:
                return [event["message"] for event in found]
            found += page["events"]
            token = {"nextToken": page["nextForwardToken"]}
