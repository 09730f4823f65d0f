#!/usr/bin/env python3
"""The perplexity in a job's report: that of `selfcal evaluate`, on any number of ranks, and of the dense model once."""
import array
import json
import signal
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from selfcal_case import SelfcalCase  # noqa: E402
from tensor_file import write_tensors  # noqa: E402

DATA, STOPPED, BAD_CONFIG = 65, 75, 78
WINDOW = {"evaluate__perplexity__window": 128, "evaluate__perplexity__stride": 96}
TEXT = {"evaluate__perplexity__tokens": "text.safetensors", **WINDOW}
# No text of its own to write: the evaluation is what takes time.
CALIBRATION = {"calibration__source": "vocabulary", "layout__mode": "shared"}


class EvaluateTest(SelfcalCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.write_text("text", [(11 * i + i * i // 7) % 128 for i in range(4000)])

    @classmethod
    def write_text(cls, name, tokens):
        write_tensors(cls.folder / f"{name}.safetensors",
                      {"input_ids": ("int64", (1, len(tokens)), array.array("q", tokens).tobytes())})

    def perplexity(self, output, job="default"):
        return json.loads((self.folder / output / "jobs" / job / "report.json").read_text())["perplexity"]

    def passes(self, output, rank=0):
        """The models that went over the text, by the log."""
        lines = (self.folder / output / "logs" / f"rank-{rank:04}.jsonl").read_text().splitlines()
        return [event["what"].split()[-1] for event in map(json.loads, lines)
                if event["event"] == "finish" and "evaluate" in event["what"] and "scores" not in event["what"]]

    def test_equal_on_any_number_of_ranks_and_that_of_the_command(self):
        found = []
        for ranks, more in [(None, {}), (2, {}), (3, {"layout__compressors__shards": 3}), (4, {})]:
            self.compress(f"ranks-{ranks}", ranks, **CALIBRATION, **TEXT, **more)
            found.append(self.perplexity(f"ranks-{ranks}"))
        self.assertEqual(found[1:], found[:1] * 3)
        self.assertEqual(found[0]["windows"], 42)
        for place, which in [("model", "dense"), ("ranks-2", "compressed")]:
            out = json.loads(self.succeed("evaluate", place, "--tokens", "text.safetensors", "--window", 128,
                                          "--stride", 96))
            self.assertAlmostEqual(out["perplexity"], found[0][which], places=6)
        self.assertNotEqual(found[0]["dense"], found[0]["compressed"])

    def test_jobs_of_one_model_score_it_once(self):
        self.compress("sweep", 2, **CALIBRATION, **TEXT, sweep="{seed: [0, 1]}")
        self.assertEqual(self.passes("sweep"), ["dense", "compressed", "compressed"])
        first, second = self.perplexity("sweep", "s0"), self.perplexity("sweep", "s1")
        self.assertEqual(first["dense"], second["dense"])
        self.assertNotEqual(first["compressed"], second["compressed"])

    def test_what_is_wrong_with_the_text_is_said_before_the_work(self):
        self.write_text("short", [1])
        (self.folder / "broken.safetensors").write_text("no tensors")
        for values, code, words in [
                ({"evaluate__perplexity__tokens": "none.safetensors"}, DATA, ["none.safetensors"]),
                ({"evaluate__perplexity__tokens": "broken.safetensors"}, DATA, ["broken.safetensors"]),
                ({**TEXT, "evaluate__perplexity__tokens": "short.safetensors"}, DATA, ["1 tokens"]),
                ({**TEXT, "evaluate__perplexity__window": 1 << 20}, BAD_CONFIG, ["window 1048576"])]:
            for command, ranks in [("compress", None), ("compress", 3), ("plan", None)]:
                with self.subTest(values=values, command=command, ranks=ranks):
                    found, _, err = self.selfcal(command, "config.yaml", *self.settings("refused", **values), ranks=ranks)
                    lines = [line for line in err.splitlines() if line.startswith("selfcal:")]
                    self.assertEqual((found, len(lines)), (code, 1), err)
                    for word in ["evaluate.perplexity", *words]:
                        self.assertIn(word, lines[0])
                    self.assertFalse((self.folder / "refused").exists())

    def test_a_stop_while_it_is_measured(self):
        self.write_text("long", [(5 * i) % 128 for i in range(120000)])
        values = {**CALIBRATION, **TEXT, "evaluate__perplexity__tokens": "long.safetensors"}
        job = self.start("compress", "config.yaml", *self.settings("stopped", **values), ranks=2)
        log = self.folder / "stopped/logs/rank-0000.jsonl"
        self.wait_for(lambda: log.exists() and "evaluate dense" in log.read_text(), job, "the evaluation")
        job.signal_rank(signal.SIGUSR1, 1)
        code, _, err = job.result(limit=60)
        self.assertEqual(code, STOPPED, err)
        self.compress("stopped", 2, **values)
        self.assertGreater(self.perplexity("stopped")["compressed"], 1)

    def test_the_plan_counts_it(self):
        plans = [json.loads(self.succeed("plan", "config.yaml", "--json", "--ranks", ranks,
                                         *self.settings("run", **CALIBRATION, **values)))
                 for ranks, values in [(2, {}), (2, TEXT), (4, TEXT)]]
        seconds = [plan["seconds"].get("evaluate", 0) for plan in plans]
        self.assertEqual(seconds[0], 0)
        self.assertGreater(seconds[1], 0)
        self.assertIn("evaluates", self.succeed("plan", "config.yaml", *self.settings("run", **CALIBRATION, **TEXT)))


if __name__ == "__main__":
    unittest.main(verbosity=2)
