"""usage: export_check.py FOLDER
Loads every <case>/packed of FOLDER with transformers and compares each weight, bit for bit, with <case>/dense: the
export of the same job as plain safetensors. Cases come from the test binary export_test, run with
SELFCAL_KEEP_EXPORTS=FOLDER. A case whose packed form needs a column index (weight_g_idx) must be refused by
compressed-tensors, which no longer loads it."""
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM


def tensors_of(directory):
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as content:
            tensors.update({name: content.get_tensor(name) for name in content.keys()})
    return tensors


def differences(case):
    expected = tensors_of(case / "dense")
    dense = AutoModelForCausalLM.from_pretrained(case / "dense", dtype="auto")
    packed = AutoModelForCausalLM.from_pretrained(case / "packed", dtype="auto")
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():  # the first forward pass unpacks
        logits = [model(input_ids=ids).logits for model in (packed, dense)]
    loaded = packed.state_dict()
    wrong = [] if torch.equal(*logits) else ["logits"]
    for name, tensor in expected.items():
        found = loaded.get(name)
        if found is None or found.dtype != tensor.dtype or not torch.equal(found, tensor):
            wrong.append(name)
    return wrong, len(expected)


def main():
    folder = Path(sys.argv[1])
    cases = sorted(path for path in folder.iterdir() if (path / "packed").is_dir())
    failed = not cases
    for case in cases:
        if '"actorder": "group"' in (case / "packed" / "config.json").read_text():
            try:
                differences(case)
                verdict = "loaded, which was not expected"
                failed = True
            except Exception as error:
                verdict = f"refused as expected ({type(error).__name__})"
        else:
            wrong, count = differences(case)
            failed |= bool(wrong)
            verdict = f"differs in {wrong[:5]}" if wrong else f"{count} tensors and the logits equal bit for bit"
        print(f"{case.name}: {verdict}")
    sys.exit(1 if failed else 0)


main()
