#!/usr/bin/env python3
"""launch/scaling on the tiny model at one and two ranks. Exit code 77, with the reason, without the tools' environment."""
import json
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import slurm_cluster  # noqa: E402
from selfcal_case import BINARY, REPOSITORY, Job, SelfcalCase  # noqa: E402

SKIPPED = 77
SCALING = REPOSITORY / "launch" / "scaling"
STUDY = """\
config: config.yaml
output: study
kind: strong
ranks: [1, 2]
set: {layout: {mode: shared}}
"""


class Scaling(SelfcalCase):
    def study(self, name, text, *options, code=0, environment=None):
        """Runs a study; (stdout, stderr)."""
        path = self.folder / f"{name}.yaml"
        path.write_text(text.replace("output: study", f"output: {name}"))
        job = Job([SCALING, path, *options], self.folder, {"SELFCAL_BINARY": str(BINARY)} | (environment or {}))
        found, out, err = job.result()
        self.assertEqual(found, code, f"{out}\n{err}")
        return out, err

    def result(self, name):
        return json.loads((self.folder / name / "scaling.json").read_text())

    def test_strong(self):
        out, _ = self.study("strong", STUDY)
        self.assertEqual(out.count("$ mpirun"), 2)
        first, second = self.result("strong")["rows"]
        for phase in ("sample", "compress", "total"):
            self.assertEqual(first[phase]["speed_up"], 1)
            self.assertEqual(first[phase]["efficiency"], 1)
            speed_up = first[phase]["seconds"] / second[phase]["seconds"]
            self.assertAlmostEqual(second[phase]["speed_up"], speed_up)
            self.assertAlmostEqual(second[phase]["efficiency"], speed_up / 2)
            self.assertLess(first[phase]["seconds"], first["total"]["seconds"] + 1e-9)
        self.assertGreater(first["by_phase"]["sample"], 0)
        for row in (first, second):
            plan = row["plan"]
            self.assertGreater(plan["sample"], 0)
            self.assertAlmostEqual(plan["sample"] + plan["compress"], plan["total"])
            self.assertAlmostEqual(sum(plan["by_phase"].values()), plan["total"])
            pairs = {"total s": (plan["total"], row["total"]["seconds"]),
                     "solve s": (plan["by_phase"]["solve"], row["busiest"]["solve"]),
                     "write s": (plan["by_phase"]["write"], row["busiest"]["write"]),
                     "memory MiB": (plan["memory"] / 2**20, row["peak_memory"] / 2**20)}
            for what, (planned, measured) in pairs.items():
                figures = rf" +{planned:.2f} \| +{measured:.2f} \| +{planned / measured:.2f}"
                self.assertRegex(out, rf"{row['ranks']} \| +{what} \|{figures}")
        self.assertNotEqual(first["plan"]["rates"]["network"], second["plan"]["rates"]["network"], "taken, not measured")
        for phase in ("reduce", "gather"):  # between ranks
            self.assertRegex(out, rf"(?m)^ +2 \| +{phase} s \| +[0-9.]+ \| +[0-9.]+ ")
        self.assertTrue((self.folder / "strong/scaling.png").read_bytes().startswith(b"\x89PNG"))
        self.assertEqual(list((self.folder / "strong/runs").iterdir()), [], "run directories were to go")
        again, _ = self.study("strong", STUDY)
        self.assertNotIn("$ mpirun", again, "what is there was run again")

    def test_control(self):
        """Two independent jobs side by side, beside one and beside two ranks of one."""
        out, _ = self.study("control", STUDY + "control: true\n")
        self.assertEqual(out.count("$ mpirun -n 1"), 3)
        self.assertEqual(out.count("$ wait"), 1)
        first, second = self.result("control")["rows"]
        reports = [json.loads((self.folder / f"control/reports/strong-0001-1-of-2-{job}.json").read_text()) for job in (0, 1)]
        for phase, measured in (("total", [report["seconds"] for report in reports]),
                                ("sample", [report["sampling_seconds"] for report in reports])):
            self.assertAlmostEqual(second["control"][phase], sum(measured) / 2)
            machine = first[phase]["seconds"] / second["control"][phase]
            self.assertAlmostEqual(second["control_efficiency"][phase], machine)
            self.assertIn(f"{phase} {machine:.1%} (ours {second[phase]['efficiency'] / machine:.1%} of it)", out)
        self.assertNotIn("control", first)
        again, _ = self.study("control", STUDY + "control: true\n")
        self.assertNotIn("$ mpirun", again, "what is there was run again")

    def test_weak(self):
        out, _ = self.study("weak", STUDY.replace("kind: strong", "kind: weak"))
        self.assertIn("--set calibration.sequences=8 ", out)
        self.assertIn("--set calibration.sequences=16 ", out)
        first, second = self.result("weak")["rows"]
        self.assertAlmostEqual(second["sample"]["efficiency"], first["sample"]["seconds"] / second["sample"]["seconds"])
        self.assertAlmostEqual(second["sample"]["speed_up"], 2 * second["sample"]["efficiency"])

    def test_slurm_jobs(self):
        text = STUDY + 'launcher: slurm\noptions: ["--partition=cpu"]\nranks_per_node: 1\n'
        out, _ = self.study("slurm", text, "--print")
        for line in ("#SBATCH --ntasks=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --partition=cpu", "srun --mpi=pmix"):
            self.assertIn(line, out)
        self.assertFalse((self.folder / "slurm").exists())

    def test_slurm_runs_them(self):
        """On nodes of one rank each; reported when the queue is empty."""
        if reason := slurm_cluster.reason_against():
            self.skipTest(reason)
        text = STUDY + "launcher: slurm\nranks_per_node: 1\n"
        with slurm_cluster.SlurmCluster(2) as slurm:
            out, _ = self.study("queued", text, environment=slurm.environment)
            self.assertEqual(out.count("$ sbatch"), 2)
            slurm.wait_for_jobs()
            logs = "".join(path.read_text() for path in (self.folder / "queued/slurm").glob("*.log"))
            out, _ = self.study("queued", text, "--gather")
        self.assertIn("strong scaling", out, logs)
        rows = self.result("queued")["rows"]
        self.assertEqual([row["ranks"] for row in rows], [1, 2], logs)
        reports = [json.loads((self.folder / f"queued/reports/strong-{ranks:04}-1.json").read_text()) for ranks in (1, 2)]
        self.assertEqual([len(report["ranks"]) for report in reports], [1, 2])
        self.assertEqual(*(report["job_id"] for report in reports))
        # The plan is of the jobs' own nodes, measured on as many ranks.
        for row in rows:
            plan = json.loads((self.folder / f"queued/plans/strong-{row['ranks']:04}-1.json").read_text())
            self.assertEqual(row["plan"]["rates"], plan["rates"])
            self.assertEqual(len(plan["ranks"]), row["ranks"])
        # What is there is not queued again.
        again, _ = self.study("queued", text)
        self.assertNotIn("$ sbatch", again)

    def random_model(self, *options):
        return Job([REPOSITORY / "tools/random_model", *options], self.folder).result()

    def test_random_model(self):
        """Has the shapes that were asked for, in files that selfcal reads."""
        self.assertEqual(self.random_model("model", "random", "--layers", 2, "--vocabulary", 32)[0], 0)
        out = self.succeed("plan", "config.yaml", "--ranks", 1, "--set", "model.path=random")
        self.assertRegex(out, r"random: LlamaForCausalLM, 2 layers")
        self.compress("of-random", model__path="random", calibration__source="vocabulary")
        (self.folder / "opt").mkdir()
        (self.folder / "opt/config.json").write_text('{"architectures": ["OPTForCausalLM"]}')
        for options, words in [(("model", "random"), "random is there already"), (("opt", "new"), "found ['OPTForCausalLM']"),
                               (("none", "new"), "none: "), (("model", "config.yaml/new"), "config.yaml/new: "),
                               (("model", "new", "--layers", 0), "--layers: found 0")]:
            with self.subTest(words):
                code, _, err = self.random_model(*options)
                self.assertEqual((code, len(err.strip().splitlines())), (1, 1), err)
                self.assertIn(words, err)
                self.assertFalse((self.folder / "new").exists())

    def test_bad_studies(self):
        for name, text, words in [("key", STUDY + "rank: 3\n", "rank: unknown key"),
                                  ("kind", STUDY.replace("strong", "steep"), "found steep, expected strong or weak"),
                                  ("file", STUDY.replace("config.yaml", "no.yaml"), "no.yaml: no such file"),
                                  ("control", STUDY.replace("[1, 2]", "[2, 4]") + "control: true\n", "begin with 1"),
                                  ("ranks", STUDY.replace("[1, 2]", "[0]"), "expected a list of counts")]:
            with self.subTest(name):
                _, err = self.study(f"bad-{name}", text, code=1)
                self.assertEqual(len(err.strip().splitlines()), 1, err)
                self.assertIn(words, err)

    def test_a_run_that_fails(self):
        _, err = self.study("failing", STUDY.replace("mode: shared", "mode: shared, generators: {replicas: 9}"), code=1)
        self.assertIn("strong-0001-1: exit code 78", err)
        self.assertIn("9 replicas", err)


if __name__ == "__main__":
    if not (REPOSITORY / ".venv-tools/bin/python").exists():
        print("skipped: .venv-tools is missing (launch/setup makes it)")
        sys.exit(SKIPPED)
    unittest.main(verbosity=2)
