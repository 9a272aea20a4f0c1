# The Genesys side of profile-edge as code (CX as Code): a role and an OAuth client that only read contacts, the data actions
# with their credential, and the source of events.

terraform {
  required_providers {
    genesyscloud = { source = "mypurecloud/genesyscloud" }
    aws          = { source = "hashicorp/aws" }
  }
}

variable "edge_url" {
  description = "The public URL of profile-edge"
  type        = string
  default     = "https://edge.example.com"
}

variable "tenant_id" {
  description = "The id of the tenant in the configuration of profile-edge"
  type        = string
  default     = "10001"
}

variable "caller_key" {
  description = "The key of the caller that the data actions are"
  type        = string
  sensitive   = true
}

variable "aws_account_id" {
  type = string
}

variable "aws_region" {
  type = string
}

resource "genesyscloud_auth_role" "cache" {
  name        = "Profile cache"
  description = "Reads external contacts, for the profile cache."

  permission_policies {
    domain      = "externalContacts"
    entity_name = "contact"
    action_set  = ["view"]
  }
}

data "genesyscloud_auth_division_home" "home" {}

resource "genesyscloud_oauth_client" "cache" {
  name                          = "Profile cache"
  description                   = "The OAuth client of the profile cache: reads external contacts only."
  authorized_grant_type         = "CLIENT_CREDENTIALS"
  access_token_validity_seconds = 86400

  roles {
    role_id     = genesyscloud_auth_role.cache.id
    division_id = data.genesyscloud_auth_division_home.home.id
  }
}

resource "genesyscloud_integration_credential" "cache" {
  name                 = "Profile cache key"
  credential_type_name = "userDefined"
  fields               = { apiKey = var.caller_key }
}

resource "genesyscloud_integration" "cache" {
  intended_state   = "ENABLED"
  integration_type = "custom-rest-actions"

  config {
    name        = "Profile cache"
    credentials = { userDefined = genesyscloud_integration_credential.cache.id }
  }
}

locals {
  # The input of each data action, and the name that it has in a request to profile-edge.
  lookups = {
    "Get cached profile by contact id" = { input = "contactId", parameter = "customerId" }
    "Get cached profile by phone"      = { input = "phone", parameter = "phone" }
    "Get cached profile by e-mail"     = { input = "email", parameter = "email" }
  }
  outputs = {
    contactId = "$.id"
    firstName = "$.firstName"
    lastName  = "$.lastName"
    workEmail = "$.workEmail"
    workPhone = "$.workPhone.e164"
  }
}

resource "genesyscloud_integration_action" "lookup" {
  for_each               = local.lookups
  name                   = each.key
  category               = "Profile cache"
  integration_id         = genesyscloud_integration.cache.id
  secure                 = false
  config_timeout_seconds = 2

  contract_input = jsonencode({
    type       = "object"
    required   = [each.value.input]
    properties = { (each.value.input) = { type = "string" } }
  })
  contract_output = jsonencode({
    type       = "object"
    properties = { for name, path in local.outputs : name => { type = "string" } }
  })

  config_request {
    request_url_template = "${var.edge_url}/api/v1/profile"
    request_type         = "POST"
    request_template     = "{\"tenantId\": \"${var.tenant_id}\", \"${each.value.parameter}\": \"$esc.jsonString($${input.${each.value.input}})\"}"
    headers = {
      "Accept"       = "application/json"
      "Content-Type" = "application/json"
      "X-API-Key"    = "$${credentials.apiKey}"
    }
  }

  config_response {
    translation_map          = local.outputs
    translation_map_defaults = { for name, path in local.outputs : name => "\"\"" }
    success_template         = "{${join(", ", [for name, path in local.outputs : "\"${name}\": $${${name}}"])}}"
  }
}

resource "genesyscloud_integration" "events" {
  intended_state   = "ENABLED"
  integration_type = "amazon-eventbridge-source"

  config {
    name = "Contact changes"
    properties = jsonencode({
      eventSourceSuffix = "profile-edge"
      awsAccountId      = var.aws_account_id
      awsAccountRegion  = var.aws_region
      eventFilter = {
        topics = ["v2.externalcontacts.contacts.{id}", "v2.audits.entitytype.{id}.entityid.{id}"]
      }
    })
  }
}

output "client_id" {
  value = genesyscloud_oauth_client.cache.client_id
}
