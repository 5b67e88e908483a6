output "state_machine_arn" {
  description = "Starts normal rotations, with {} or an example of events/execution-*.json."
  value       = aws_cloudformation_stack.rotation.outputs["StateMachineArn"]
}

output "emergency_state_machine_arn" {
  description = "Starts emergencies, with an input as events/execution-emergency.json."
  value       = aws_cloudformation_stack.rotation.outputs["EmergencyStateMachineArn"]
}

output "start_rotation_policy_arn" {
  description = "For roles that may start normal rotations."
  value       = aws_cloudformation_stack.rotation.outputs["StartRotationPolicyArn"]
}

output "start_emergency_policy_arn" {
  description = "For roles that may start emergencies."
  value       = aws_cloudformation_stack.rotation.outputs["StartEmergencyPolicyArn"]
}

output "topic_arn" {
  description = "Topic of outcomes and alarms; subscribe the on-call system."
  value       = aws_cloudformation_stack.rotation.outputs["TopicArn"]
}

output "control_table_name" {
  description = "MATTER_CONTROL_TABLE of the CLI and of applications."
  value       = aws_cloudformation_stack.rotation.outputs["ControlTableName"]
}

output "audit_bucket_name" {
  description = "Write-once bucket of the audit chain."
  value       = aws_cloudformation_stack.rotation.outputs["AuditBucketName"]
}

output "data_plane_policy_arn" {
  description = "For roles of applications that Terraform does not manage."
  value       = aws_cloudformation_stack.rotation.outputs["DataPlanePolicyArn"]
}
