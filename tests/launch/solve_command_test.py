#!/usr/bin/env python3
"""`selfcal solve` as a program: the answers of the published code on a real layer, and its line of JSON; bad problems."""
import array
import json
import struct
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from selfcal_case import REPOSITORY, SelfcalCase  # noqa: E402
from tensor_file import write_tensors  # noqa: E402

FIXTURE = REPOSITORY / "tests" / "data" / "solvers" / "k_proj.safetensors"
NUMBERS = {"F32": "f", "U8": "B", "I32": "i"}


def read_file(path):
    """({tensor: numbers, row after row}, metadata) of a safetensors file."""
    raw = Path(path).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + size])
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        first, last = (8 + size + offset for offset in entry["data_offsets"])
        tensors[name] = array.array(NUMBERS[entry["dtype"]], raw[first:last])
    return tensors, metadata


def words_of(name, settings):
    """The command line's words for an answer of the fixture."""
    words = {"method": name.split("_")[0], "block-size": settings.get("block", 128), "damping": settings.get("damp", 0.01),
             "act-order": "static" if settings.get("act_order") else "none", "group-size": settings.get("group_size", -1),
             "symmetric": settings.get("symmetric", False)}
    if words["method"] == "gptq":
        words |= {"bits": settings["bits"], "mse": settings["mse"], "static-groups": settings["static_groups"]}
    elif settings["of"]:
        words["pattern"] = f"{settings['zeros']}:{settings['of']}"
    else:
        words["sparsity"] = 0.5
    if words["method"] == "sparsegpt":
        words |= {"bits": settings["bits"], "group-params": "published"}
    return [word for key, value in words.items() for word in (f"--{key}", str(value).lower())]


def zeros_of(values):
    return sum(value == 0 for value in values) / len(values)


class SolveCommand(SelfcalCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tensors, cls.metadata = read_file(FIXTURE)

    def solve(self, *words, problem=FIXTURE):
        """(tensors, line of JSON)"""
        line = json.loads(self.succeed("solve", problem, "--out", "out.safetensors", *words))
        return read_file(self.folder / "out.safetensors")[0], line

    def test_published_answers(self):
        answers = {name: json.loads(text) for name, text in self.metadata.items()
                   if name.startswith(("gptq", "sparsegpt", "wanda"))}
        self.assertGreaterEqual(len(answers), 10)
        for name, settings in answers.items():
            with self.subTest(answer=name):
                solved, line = self.solve(*words_of(name, settings))
                expected = self.tensors[name]
                # An eighth of the widest step, where there are steps.
                bits = settings.get("bits", 16)
                near = max(map(abs, expected)) / 2 ** bits / 4 if bits < 16 else 1e-4 * max(map(abs, expected))
                equal = sum(abs(a - b) < near for a, b in zip(solved["weight"], expected))
                self.assertGreaterEqual(equal / len(expected), 0.995)
                self.assertEqual((line["rows"], line["columns"]), (48, 576))
                self.assertLess(0, line["relative_error"])
                self.assertLess(line["relative_error"], line["nearest_relative_error"])
                self.assertAlmostEqual(line["zeros"], zeros_of(solved["weight"]), places=6)
                self.assertEqual("codes" in solved, settings.get("bits", 16) < 16)
                self.assertEqual("mask" in solved, not name.startswith("gptq"))
                if "mask" in solved:
                    self.assertEqual(zeros_of(solved["mask"]), 0.5)
                    self.assertTrue(all(kept or not weight for kept, weight in zip(solved["mask"], solved["weight"])))

    def test_the_controls_and_awq(self):
        errors = {}
        for method, words in {"nearest": ["--bits", 3], "gptq": ["--bits", 3], "awq": ["--bits", 3],
                              "magnitude": ["--sparsity", 0.5]}.items():
            solved, line = self.solve("--method", method, "--group-size", 64, "--symmetric", "false", *words)
            self.assertEqual(line["method"], method)
            self.assertEqual("input_scale" in solved, method == "awq")
            errors[method] = line["relative_error"]
            if method in ("nearest", "magnitude"):  # each is its own control
                self.assertAlmostEqual(line["relative_error"] / line["nearest_relative_error"], 1, places=6)
        self.assertLess(errors["gptq"], errors["nearest"])
        self.assertLess(errors["awq"], errors["nearest"])

    def write(self, **changed):
        """A copy of the problem with some tensors given anew; of none: left out."""
        shapes = {"weight": (48, 576), "hessian": (576, 576), "column_sq_norm": (576,)}
        chosen = {name: changed.get(name, self.tensors[name]) for name in shapes}
        write_tensors(self.folder / "problem.safetensors",
                      {name: ("float32", shapes[name], values.tobytes()) for name, values in chosen.items() if values})
        return "problem.safetensors"

    def test_wanda_takes_norms_for_a_hessian(self):
        words = ["--method", "wanda", "--pattern", "2:4"]
        by_hessian, _ = self.solve(*words)
        by_norms, line = self.solve(*words, problem=self.write(hessian=None))
        self.assertEqual(by_norms["mask"], by_hessian["mask"])
        self.assertEqual(by_norms["weight"], by_hessian["weight"])
        self.assertLess(line["relative_error"], line["nearest_relative_error"])

    def test_bad_problems_end_in_one_line(self):
        negative = array.array("f", self.tensors["hessian"])
        negative[7 * 577] = -3
        norms = array.array("f", self.tensors["column_sq_norm"])
        norms[9] = -2
        broken = array.array("f", self.tensors["weight"])
        broken[100] = float("nan")
        share = ["--sparsity", 0.5]
        for changed, words, text in [
                ({"hessian": negative}, ["--method", "wanda", *share], "-3 on its diagonal"),
                ({"hessian": negative}, ["--method", "magnitude", *share], "-3 on its diagonal"),
                ({"hessian": negative}, ["--method", "sparsegpt", *share], "-3 on its diagonal"),
                ({"hessian": negative}, ["--method", "awq", "--group-size", 64], "-3 on its diagonal"),
                ({"hessian": None, "column_sq_norm": norms}, ["--method", "wanda", *share], "-2 on its diagonal"),
                ({"hessian": None}, ["--method", "gptq"], "no tensor 'hessian'"),
                ({"weight": broken}, ["--method", "wanda", *share], "weight not finite")]:
            with self.subTest(words=words, text=text):
                code, _, err = self.selfcal("solve", self.write(**changed), "--out", "refused.safetensors", *words)
                self.assertEqual(code, 65, err)
                self.assertIn(text, err)
                self.assertIn("problem.safetensors", err)
                self.assertEqual(len(err.strip().splitlines()), 1, err)
                self.assertFalse((self.folder / "refused.safetensors").exists())


if __name__ == "__main__":
    unittest.main(verbosity=2)
