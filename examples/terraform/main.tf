# Deploys the very artefact that sam deploy deploys: template.yaml, packaged. Roles,
# alarms and the state machine are described there and nowhere else, and the project's
# tests run that file; here are only its parameters and what Terraform's side needs.

locals {
  digest = filesha256(var.packaged_template)
  sources = [
    for s in var.sources : { for k, v in s : k => v if v != null && k != "table_arn" }
  ]
}

data "aws_s3_bucket" "artifacts" {
  bucket = var.artifact_bucket
}

# The key carries the digest: another template is another URL, which is what makes
# the stack be updated.
resource "aws_s3_object" "template" {
  bucket       = data.aws_s3_bucket.artifacts.id
  key          = "${var.stack_name}/${local.digest}.template.yaml"
  source       = var.packaged_template
  source_hash  = local.digest
  content_type = "application/yaml"
}

resource "aws_cloudformation_stack" "rotation" {
  name         = var.stack_name
  template_url = "https://${data.aws_s3_bucket.artifacts.bucket_regional_domain_name}/${aws_s3_object.template.key}"
  # IAM: roles without fixed names. AUTO_EXPAND: the SAM transform runs in CloudFormation.
  capabilities = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
  on_failure   = "ROLLBACK"
  tags         = var.tags

  parameters = merge(var.parameters, {
    Sources         = jsonencode(local.sources)
    SourceTableArns = join(",", [for s in var.sources : s.table_arn])
    CorpusBucket    = var.corpus == null ? "" : var.corpus.bucket
    CorpusPrefix    = var.corpus == null ? "" : var.corpus.prefix
  })

  # No update may replace or remove what the rows and the audit chain depend on.
  policy_body = jsonencode({
    Statement = [
      { Effect = "Allow", Principal = "*", Action = "Update:*", Resource = "*" },
      {
        Effect    = "Deny"
        Principal = "*"
        Action    = ["Update:Replace", "Update:Delete"]
        Resource = [
          "LogicalResourceId/ControlTable",
          "LogicalResourceId/AuditBucket",
          "LogicalResourceId/AuditBucketPolicy",
          "LogicalResourceId/AnchorKey",
        ]
      },
    ]
  })

  lifecycle {
    # A rotation that has halted is in that table. Remove this by hand to destroy.
    prevent_destroy = true
  }
}

resource "aws_iam_role_policy_attachment" "data_plane" {
  for_each   = var.application_roles
  role       = each.value
  policy_arn = aws_cloudformation_stack.rotation.outputs["DataPlanePolicyArn"]
}
