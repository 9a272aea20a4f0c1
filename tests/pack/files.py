"""Checks the files of conf/genesys beyond what cfn-lint knows.

Terraform: python-hcl2 parses each file, and every reference leads to something that the files declare. The call flow: no
schema of Archy's format is published, so its own references are checked: tasks, variables, and the inputs and outputs of
its data actions, which must be those of the exported ones.
"""

import json
import pathlib
import re
import sys

import hcl2
import yaml

PACK = pathlib.Path("conf/genesys")


def plain(name):
    """Returns a block label without the quotes that python-hcl2 keeps."""
    return name.strip('"')


def terraform():
    declared, texts = set(), []
    for path in sorted((PACK / "terraform").glob("*.tf")):
        text = path.read_text(encoding="utf-8")
        blocks = hcl2.loads(text)
        for kind, depth in (("resource", 2), ("data", 2), ("variable", 1), ("output", 1)):
            for block in blocks.get(kind, []):
                names = []
                for _ in range(depth):
                    name = next(name for name in block if not name.startswith("__"))
                    names.append(plain(name))
                    block = block[name]
                prefix = {"resource": [], "data": ["data"], "variable": ["var"], "output": ["output"]}[kind]
                name = ".".join(prefix + names)
                assert name not in declared, f"{path.name}: {name} is declared twice"
                declared.add(name)
        for block in blocks.get("locals", []):
            declared.update(f"local.{plain(name)}" for name in block if not name.startswith("__"))
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        texts.append((path.name, code))
    references = 0
    pattern = r"(?<![\w.\"])(?:(data)\.)?((?:aws|genesyscloud)_\w+)\.(\w+)\.|(?<![\w.])(var|local)\.(\w+)"
    for name, code in texts:
        for data, kind, resource, root, field in re.findall(pattern, code):
            target = f"{root}.{field}" if root else ".".join(filter(None, [data, kind, resource]))
            assert target in declared, f"{name}: nothing declares {target}"
            references += 1
    assert len(declared) > 15 and references > 15, (declared, references)
    print(f"  python-hcl2: {len(texts)} Terraform files, {len(declared)} declarations, {references} references")


def steps(node, kind):
    """Yields every step of a kind, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == kind:
                yield value
            yield from steps(value, kind)
    elif isinstance(node, list):
        for value in node:
            yield from steps(value, kind)


def flow():
    actions = {}
    for path in PACK.glob("data-action-*.json"):
        action = json.loads(path.read_text(encoding="utf-8"))
        contract = action["contract"]
        inputs = set(contract["input"]["inputSchema"]["properties"])
        actions[action["name"]] = (inputs, set(contract["output"]["successSchema"]["properties"]))
    (document,) = yaml.safe_load((PACK / "flow-inbound-call.yaml").read_text(encoding="utf-8")).values()
    tasks = {entry["task"]["refId"]: entry["task"] for entry in document["tasks"]}

    def target(reference):
        found = re.fullmatch(r"\./tasks/task\[(\w+)\]", reference)
        assert found and found.group(1) in tasks, f"no task {reference}"
        return tasks[found.group(1)]

    target(document["startUpRef"])
    asked = 0
    for task in tasks.values():
        variables = {variable["name"] for entry in task["variables"] for variable in entry.values()}
        for call in steps(task, "callTask"):
            outputs = {
                variable["name"].split(".")[1]
                for entry in target(call["targetTaskRef"])["variables"]
                for variable in entry.values()
                if variable.get("isOutput")
            }
            assert set(call["taskOutputs"]) <= outputs, f"{call['name']}: {outputs}"
        for call in steps(task, "callData"):
            assert call["timeout"]["lit"]["seconds"] == 2, call["name"]
            for category in call["category"].values():
                for name, use in category["dataAction"].items():
                    assert name in actions, f"no data action {name}"
                    inputs, outputs = actions[name]
                    assert set(use["inputs"]) == inputs, f"{name}: {inputs}"
                    assert set(use["successOutputs"]) <= outputs, f"{name}: {outputs}"
                    for output in use["successOutputs"].values():
                        assert output["var"] in variables, output
                    asked += 1
        used = set(re.findall(r"Task\.\w+", json.dumps(task)))
        assert used <= variables, f"{task['name']}: {used - variables} are not declared"
    assert asked == 2, asked
    print(f"  the call flow: {len(tasks)} tasks, {asked} data actions with the inputs and outputs of their exports")


def main():
    terraform()
    flow()


if __name__ == "__main__":
    sys.exit(main())
