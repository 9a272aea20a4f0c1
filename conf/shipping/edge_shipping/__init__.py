"""The parts of the collector that are ours: the redaction, and a destination for Splunk and one for CloudWatch."""
