"""Turns a SAM template into CloudFormation, as sam deploy has the service do it.

Arguments: template, bucket of the artefacts, parameters as a JSON object. Prints a
JSON object: the template, and what local file each function's code (code) and each
state machine's definition (definitions) came from, by logical id. The code itself
is not uploaded: the local AWS runs the built binaries.
"""

import json
import sys

import yaml
from samtranslator.model.exceptions import InvalidDocumentException
from samtranslator.translator.transform import transform


class Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms, and no scalar as a date."""


def intrinsic(loader, name, node):
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if name in ("Ref", "Condition"):
        return {name: value}
    if name == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {"Fn::" + name: value}


Loader.add_multi_constructor("!", intrinsic)
Loader.add_constructor("tag:yaml.org,2002:timestamp", Loader.construct_yaml_str)


class ManagedPolicies:
    """No policy of AWS by name: a role of this project names ARNs."""

    def load(self):
        return {}


def main():
    path, bucket, parameters = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    with open(path, encoding="utf-8") as f:
        template = yaml.load(f, Loader)
    local = {
        "AWS::Serverless::Function": ("CodeUri", ".zip", {}),
        "AWS::Serverless::StateMachine": ("DefinitionUri", ".json", {}),
    }
    for logical, resource in template["Resources"].items():
        if resource["Type"] in local:
            name, ending, found = local[resource["Type"]]
            uri = resource.setdefault("Properties", {}).get(name)
            if isinstance(uri, str) and not uri.startswith("s3://"):
                found[logical] = uri
                resource["Properties"][name] = f"s3://{bucket}/{logical}{ending}"
    try:
        out = transform(template, parameters, ManagedPolicies())
    except InvalidDocumentException as e:
        sys.exit("\n".join(cause.message for cause in e.causes))
    json.dump(
        {
            "template": out,
            "code": local["AWS::Serverless::Function"][2],
            "definitions": local["AWS::Serverless::StateMachine"][2],
        },
        sys.stdout,
    )


main()
