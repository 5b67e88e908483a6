# terraform test: what is handed to CloudFormation, with a provider that calls nobody.

mock_provider "aws" {
  mock_data "aws_s3_bucket" {
    defaults = {
      bucket_regional_domain_name = "my-artifacts.s3.eu-central-1.amazonaws.com"
    }
  }
  mock_resource "aws_cloudformation_stack" {
    defaults = {
      outputs = {
        ControlTableName         = "matter-control"
        AuditBucketName          = "matter-audit"
        StateMachineArn          = "arn:aws:states:eu-central-1:123456789012:stateMachine:matter-rotation"
        EmergencyStateMachineArn = "arn:aws:states:eu-central-1:123456789012:stateMachine:matter-emergency"
        StartRotationPolicyArn   = "arn:aws:iam::123456789012:policy/matter-start-rotation"
        StartEmergencyPolicyArn  = "arn:aws:iam::123456789012:policy/matter-start-emergency"
        TopicArn                 = "arn:aws:sns:eu-central-1:123456789012:matter-notifications"
        DataPlanePolicyArn       = "arn:aws:iam::123456789012:policy/matter-data-plane"
      }
    }
  }
}

variables {
  artifact_bucket   = "my-artifacts"
  packaged_template = "tests/packaged.yaml"
  sources = [{
    table                 = "orders"
    table_arn             = "arn:aws:dynamodb:eu-central-1:123456789012:table/orders"
    kek_id_attribute      = "kek_id"
    wrapped_dek_attribute = "wrapped_dek"
    ciphertext_attribute  = "ciphertext"
    context               = { table = "orders" }
    bind                  = { id = "$order_id" }
  }]
  parameters        = { TimeZone = "Europe/Berlin" }
  application_roles = ["orders-service"]
}

run "hands_over_the_packaged_template" {
  command = plan

  assert {
    condition     = aws_cloudformation_stack.rotation.template_url == "https://my-artifacts.s3.eu-central-1.amazonaws.com/matter/${filesha256("tests/packaged.yaml")}.template.yaml"
    error_message = "The stack must be of the template whose digest is in its key."
  }
  assert {
    condition     = jsondecode(aws_cloudformation_stack.rotation.parameters["Sources"])[0].bind.id == "$order_id"
    error_message = "The sources must reach matter ops kms-genesis as they are."
  }
  assert {
    condition     = !can(jsondecode(aws_cloudformation_stack.rotation.parameters["Sources"])[0].table_arn) && !can(jsondecode(aws_cloudformation_stack.rotation.parameters["Sources"])[0].name)
    error_message = "matter ops kms-genesis decodes strictly: no field that it does not know, none that is null."
  }
  assert {
    condition     = aws_cloudformation_stack.rotation.parameters["CorpusBucket"] == "" && aws_cloudformation_stack.rotation.parameters["TimeZone"] == "Europe/Berlin"
    error_message = "No corpus is an empty parameter; others are passed on."
  }
  assert {
    condition     = keys(aws_iam_role_policy_attachment.data_plane) == ["orders-service"]
    error_message = "The application's role must get the data-plane policy."
  }
}

run "refuses_the_arn_of_another_table" {
  command = plan
  variables {
    sources = [{
      table                 = "orders"
      table_arn             = "arn:aws:dynamodb:eu-central-1:123456789012:table/people"
      kek_id_attribute      = "kek_id"
      wrapped_dek_attribute = "wrapped_dek"
      ciphertext_attribute  = "ciphertext"
      context               = {}
    }]
  }
  expect_failures = [var.sources]
}

run "refuses_a_kek_tag" {
  command = plan
  variables {
    tags = { "matter:stack" = "matter" }
  }
  expect_failures = [var.tags]
}
