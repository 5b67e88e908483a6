variable "stack_name" {
  description = "Name of the CloudFormation stack: the audit chain's name, and the tag of every KEK. It cannot be changed later."
  type        = string
  default     = "matter"
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z][A-Za-z0-9-]{0,52}$", var.stack_name))
    error_message = "Use at most 53 letters, digits and hyphens, starting with a letter: it is part of the functions' names."
  }
}

variable "artifact_bucket" {
  description = "Bucket to which sam package uploaded the functions, in the Region of the stack. The template goes there too."
  type        = string
  nullable    = false
}

variable "packaged_template" {
  description = "The template that sam package wrote: template.yaml with the functions' code in artifact_bucket."
  type        = string
  default     = "packaged.yaml"
  nullable    = false
}

variable "sources" {
  description = "The tables that are the first sources, and the ARNs of all that are. matter ops kms-genesis registers them once; from then on matter ops source add and remove do. Values of context and bind are literals or $attribute."
  type = list(object({
    table                 = string
    table_arn             = string
    envelope              = optional(string)
    dek_id_attribute      = optional(string)
    kek_id_attribute      = optional(string)
    wrapped_dek_attribute = optional(string)
    ciphertext_attribute  = optional(string)
    context               = map(string)
    bind                  = optional(map(string))
    name                  = optional(string)
    epoch_attribute       = optional(string)
    version_attribute     = optional(string)
    format                = optional(string)
    payloads              = optional(string)
    other                 = optional(object({ attribute = string, values = list(string) }))
  }))
  default  = []
  nullable = false

  validation {
    condition     = alltrue([for s in var.sources : endswith(s.table_arn, ":table/${s.table}")])
    error_message = "Each table_arn must be the ARN of its table."
  }
}

variable "corpus" {
  description = "Where the known-cipher corpus is; null for none. The prefix ends in a slash or is empty."
  type = object({
    bucket = string
    prefix = optional(string, "")
  })
  default = null
}

variable "parameters" {
  description = "Any other parameter of template.yaml by its name, e.g. { TimeZone = \"Europe/Berlin\", Window = \"01:00-05:00\" }. What is left out keeps the template's default."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = length(setintersection(keys(var.parameters), ["Sources", "SourceTableArns", "CorpusBucket", "CorpusPrefix"])) == 0
    error_message = "Sources and corpus have variables of their own."
  }
}

variable "application_roles" {
  description = "Names of the roles of the applications that seal and open rows."
  type        = set(string)
  default     = []
  nullable    = false
}

variable "tags" {
  description = "Tags of the stack, which CloudFormation passes on. Do not use matter:stack, which marks KEKs."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = !anytrue([for k in keys(var.tags) : startswith(k, "matter:")])
    error_message = "Tags that start with matter: mark KEKs; a resource that is none must not carry one."
  }
}
