# Posts changed contacts from Amazon EventBridge to profile-edge. Apply genesys.tf first: it creates the partner event source.

variable "event_bus_name" {
  description = "The partner event bus of Genesys Cloud, aws.partner/genesys.com/cloud/ORG/SUFFIX"
  type        = string
}

variable "webhook_key" {
  description = "A secret of the tenant's webhook with the scheme api-key"
  type        = string
  sensitive   = true
}

resource "aws_cloudwatch_event_connection" "edge" {
  name               = "profile-edge"
  authorization_type = "API_KEY"

  auth_parameters {
    api_key {
      key   = "X-API-Key"
      value = var.webhook_key
    }
  }
}

resource "aws_cloudwatch_event_api_destination" "edge" {
  name                             = "profile-edge"
  connection_arn                   = aws_cloudwatch_event_connection.edge.arn
  http_method                      = "POST"
  invocation_endpoint              = "${var.edge_url}/webhooks/${var.tenant_id}"
  invocation_rate_limit_per_second = 300
}

# What could not be posted within a day.
resource "aws_sqs_queue" "dead_letters" {
  name                      = "profile-edge-dead-letters"
  message_retention_seconds = 1209600
  sqs_managed_sse_enabled   = true
}

resource "aws_sqs_queue_policy" "dead_letters" {
  queue_url = aws_sqs_queue.dead_letters.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "events.amazonaws.com" }
      Action    = "sqs:SendMessage"
      Resource  = aws_sqs_queue.dead_letters.arn
      Condition = { ArnEquals = { "aws:SourceArn" = aws_cloudwatch_event_rule.contacts.arn } }
    }]
  })
}

resource "aws_iam_role" "invoke" {
  name = "profile-edge-events"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Principal = { Service = "events.amazonaws.com" }, Action = "sts:AssumeRole" }]
  })
}

resource "aws_iam_role_policy" "invoke" {
  role = aws_iam_role.invoke.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = "events:InvokeApiDestination"
      Resource = aws_cloudwatch_event_api_destination.edge.arn
    }]
  })
}

resource "aws_cloudwatch_event_rule" "contacts" {
  name           = "profile-edge-contacts"
  event_bus_name = var.event_bus_name
  event_pattern = jsonencode({
    source = [{ prefix = "aws.partner/genesys.com/cloud/" }]
    "$or" = [
      { "detail-type" = ["v2.externalcontacts.contacts.{id}", "v2.externalcontacts.contacts.{id}.unresolved"] },
      {
        "detail-type" = ["v2.audits.entitytype.{id}.entityid.{id}"]
        detail        = { eventBody = { serviceName = ["ExternalContacts"], entityType = ["Contact"] } }
      }
    ]
  })
}

resource "aws_cloudwatch_event_target" "edge" {
  rule           = aws_cloudwatch_event_rule.contacts.name
  event_bus_name = var.event_bus_name
  arn            = aws_cloudwatch_event_api_destination.edge.arn
  role_arn       = aws_iam_role.invoke.arn

  dead_letter_config {
    arn = aws_sqs_queue.dead_letters.arn
  }

  retry_policy {
    maximum_event_age_in_seconds = 86400
    maximum_retry_attempts       = 185
  }
}
