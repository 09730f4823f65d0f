#!/usr/bin/env python3
"""Bad input ends in one clear line and the right exit code, on every number of ranks, and nothing is lost."""
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import slurm_cluster  # noqa: E402
from selfcal_case import CONFIG, Job, SelfcalCase, BINARY  # noqa: E402

USAGE, DATA, INTERNAL, INPUT_OUTPUT, STOPPED, BAD_CONFIG = 64, 65, 70, 74, 75, 78


def rewrite_tensor(folder, name, change):
    """change(header entry, raw bytes) -> raw bytes of one tensor; the header is written back as it then is."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    begin, end = header[name]["data_offsets"]
    raw = change(header[name], data[8 + size + begin:8 + size + end])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size:8 + size + begin] + raw
                     + data[8 + size + end:])


def drop_tensor(folder, name):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header[name + ".renamed"] = header.pop(name)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size:])


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def nan_weight(entry, raw):
    return raw[:200] + b"\xc0\x7f" + raw[202:]


def huge_weight(entry, raw):
    """3e38 in bfloat16: finite, but what it multiplies is not."""
    return raw[:20] + b"\x62\x7f" + raw[22:]


def swapped_shape(entry, raw):
    entry["shape"] = entry["shape"][::-1]
    return raw


WEIGHT = "model.layers.3.mlp.down_proj.weight"
NORM = "model.layers.2.input_layernorm.weight"

# name: (change of the model folder, exit code, words of the one line)
BAD_MODELS = {
    "weights missing": (lambda m: (m / "model.safetensors").unlink(), DATA, ["model.safetensors"]),
    "config missing": (lambda m: (m / "config.json").unlink(), DATA, ["config.json"]),
    "config not JSON": (lambda m: (m / "config.json").write_text("{"), DATA, ["config.json"]),
    "file cut short": (truncate, DATA, ["model.safetensors"]),
    "empty file": (lambda m: (m / "model.safetensors").write_bytes(b""), DATA, ["model.safetensors"]),
    "header of nonsense": (lambda m: (m / "model.safetensors").write_bytes(b"\xff" * 4096), DATA,
                           ["model.safetensors"]),
    "tensor missing": (lambda m: drop_tensor(m, WEIGHT), DATA, [WEIGHT]),
    "wrong shape": (lambda m: rewrite_tensor(m, WEIGHT, swapped_shape), DATA, [WEIGHT, "64", "96"]),
    "a NaN weight": (lambda m: rewrite_tensor(m, WEIGHT, nan_weight), DATA, [WEIGHT]),
    "unknown architecture": (lambda m: change_config(m, architectures=["MambaForCausalLM"], model_type="mamba"), DATA,
                             ["MambaForCausalLM"]),
    "heads that do not divide": (lambda m: change_config(m, num_key_value_heads=3), DATA, ["3"]),
}

# name: (change of the config text, exit code, words of the one line)
BAD_CONFIGS = {
    "unknown key": (lambda c: c.replace("threads: 1", "thread: 1"), BAD_CONFIG, ["config.yaml:3", "thread"]),
    "unknown key inside": (lambda c: c.replace("bits: 4", "bit: 4"), BAD_CONFIG, ["config.yaml:6", "bit"]),
    "duplicate key": (lambda c: c + "threads: 2\n", BAD_CONFIG, ["config.yaml:8", "threads"]),
    "out of range": (lambda c: c.replace("bits: 4", "bits: 40"), BAD_CONFIG, ["config.yaml:6", "method.bits", "40"]),
    "not a number": (lambda c: c.replace("bits: 4", "bits: four"), BAD_CONFIG, ["config.yaml:6", "bits", "four"]),
    "unknown word": (lambda c: c.replace("name: gptq", "name: gptk"), BAD_CONFIG, ["config.yaml:6", "gptk", "gptq"]),
    "not YAML": (lambda c: c + "[\n", BAD_CONFIG, ["config.yaml"]),
    "no model": (lambda c: c.replace("model: {path: model}\n", ""), BAD_CONFIG, ["config.yaml", "model.path"]),
    "group size that does not divide": (lambda c: c.replace("group_size: 16", "group_size: 64"), BAD_CONFIG,
                                        ["group_size", "64", "down_proj", "32"]),
    "model folder missing": (lambda c: c.replace("path: model", "path: no-such-model"), DATA, ["no-such-model"]),
    "length over the model's": (lambda c: c.replace("length: 48", "length: 4096"), BAD_CONFIG,
                                ["calibration.length", "4096", "256"]),
    "token file missing": (lambda c: c.replace("source: self", "source: tokens, tokens: nothing.safetensors"), DATA,
                           ["nothing.safetensors"]),
}


class BadInput(SelfcalCase):
    def fresh(self, name):
        """A folder with a copy of the model and of the config."""
        folder = self.folder / name.replace(" ", "-")
        shutil.copytree(self.folder / "model", folder / "model")
        (folder / "config.yaml").write_text(CONFIG)
        return folder

    def check(self, result, code, words, ranks):
        found, out, err = result
        lines = [line for line in err.splitlines() if line.startswith("selfcal:")]
        everything = f"exit code {found}, expected {code}\nstdout:\n{out}\nstderr:\n{err}"
        self.assertEqual(found, code, everything)
        self.assertEqual(len(lines), 1, everything)
        if ranks is None:  # mpirun adds words of its own
            self.assertEqual(err.splitlines()[-1], lines[0], everything)
        for word in words:
            self.assertIn(word, lines[0], everything)

    def compress_in(self, folder, ranks=None, **how):
        return self.selfcal("compress", "config.yaml", ranks=ranks, folder=folder, **how)

    def test_bad_models(self):
        for name, (change, code, words) in BAD_MODELS.items():
            folder = self.fresh(name)
            change(folder / "model")
            for ranks in (None, 3):
                with self.subTest(name, ranks=ranks):
                    self.check(self.compress_in(folder, ranks), code, words, ranks)
            self.assertFalse(list(folder.glob("run/jobs/*/model.h5")), "a checkpoint that looks whole")

    def test_activations_that_overflow(self):
        """Finite weights whose products are not: the first input that shows it is named."""
        folder = self.fresh("overflow")
        rewrite_tensor(folder / "model", NORM, huge_weight)
        config = CONFIG.replace("source: self", "source: vocabulary")
        expected = ["input of model.layers.2.self_attn.q_proj: activation not finite"]
        for method in ("{name: gptq, bits: 4, group_size: 16}", "{name: wanda, pattern: \"2:4\"}"):
            (folder / "config.yaml").write_text(re.sub(r"method: .*", f"method: {method}", config))
            for ranks in (None, 2, 3):
                with self.subTest(method, ranks=ranks):
                    shutil.rmtree(folder / "run", ignore_errors=True)
                    self.check(self.compress_in(folder, ranks), DATA, expected, ranks)

    def test_bad_configs(self):
        for name, (change, code, words) in BAD_CONFIGS.items():
            folder = self.fresh(name)
            (folder / "config.yaml").write_text(change(CONFIG))
            for ranks in (None, 2):
                with self.subTest(name, ranks=ranks):
                    self.check(self.compress_in(folder, ranks), code, words, ranks)
            self.assertFalse((folder / "run").exists(), f"{name}: a run directory was made")

    def test_a_gpu_where_none_is(self):
        folder = self.fresh("no gpu")
        (folder / "config.yaml").write_text(CONFIG + "device: cuda\n")
        for ranks in (None, 3):
            result = self.compress_in(folder, ranks, environment={"CUDA_VISIBLE_DEVICES": ""})
            self.check(result, BAD_CONFIG, ["device: cuda"], ranks)
        (folder / "config.yaml").write_text(CONFIG + "device: auto\n")
        self.succeed("compress", "config.yaml", folder=folder, environment={"CUDA_VISIBLE_DEVICES": ""})

    def test_output_of_another_config(self):
        folder = self.fresh("other config")
        self.succeed("compress", "config.yaml", folder=folder)
        before = self.succeed("verify", "run", folder=folder)
        (folder / "config.yaml").write_text(CONFIG.replace("bits: 4", "bits: 3"))
        for ranks in (None, 2):
            self.check(self.compress_in(folder, ranks), BAD_CONFIG, ["run", "bits: 4"], ranks)
        self.assertEqual(self.succeed("verify", "run", folder=folder), before)

    def test_too_few_ranks(self):
        folder = self.fresh("too few ranks")
        words = ["compress", "config.yaml", "--set", "layout.compressors.shards=2", "--set",
                 "layout.compressors.team=2", "--set", "layout.generators.replicas=1"]
        self.check(self.selfcal(*words, ranks=3, folder=folder), BAD_CONFIG, ["3", "5"], 3)

    def test_usage(self):
        for words, expected in [(["compres"], "compres"), (["compress"], "config"), (["compress", "no.yaml"], "no.yaml"),
                                (["compress", "config.yaml", "--sets", "a=1"], "--sets")]:
            with self.subTest(" ".join(words)):
                code = BAD_CONFIG if "no.yaml" in words else USAGE
                self.check(self.selfcal(*words), code, [expected], None)

    def alone_in_mpi(self, command, environment):
        """A rank that MPI sees alone: its lines."""
        code, _, err = self.selfcal(command, "config.yaml", environment=environment)
        self.assertEqual(code, USAGE, err)
        return [line for line in err.splitlines() if line.startswith("selfcal:")]

    def test_launcher_that_mpi_does_not_know(self):
        """srun with the wrong --mpi: every rank is alone in its MPI; they must not all do the whole job."""
        step_of_one = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
        launchers = [{"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "{}"},
                     {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "{}"},
                     {**step_of_one, "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "{}"},
                     {"PMI_SIZE": "4", "SLURM_PROCID": "{}"}]
        for launcher in launchers:
            for rank, command in ((0, "compress"), (1, "compress"), (0, "plan"), (3, "plan")):
                with self.subTest(launcher=launcher, rank=rank, command=command):
                    lines = self.alone_in_mpi(command, {key: value.format(rank) for key, value in launcher.items()})
                    self.assertEqual(len(lines), 1 if rank == 0 else 0, lines)
                    for word in ("4 ranks", "MPI sees one", "--mpi=pmix"):
                        self.assertTrue(rank or word in lines[0], lines)

    def test_launcher_that_numbers_ranks_but_does_not_count_them(self):
        """PMIx alone: the first rank cannot know, the others do."""
        self.assertIn("at least 2 ranks but MPI sees one", self.alone_in_mpi("plan", {"PMIX_RANK": "1"})[0])
        self.assertEqual(self.alone_in_mpi("plan", {"PMIX_RANK": "2"}), [])
        self.succeed("plan", "config.yaml", environment={"PMIX_RANK": "0"})

    def test_plan_of_ranks_within_a_step_of_one(self):
        """mpirun in an interactive step: all ranks plan together, and one speaks."""
        out = self.succeed("plan", "config.yaml", ranks=2, environment={"SLURM_STEP_NUM_TASKS": "1"})
        self.assertEqual(out.count("calibration "), 1, out)

    def test_srun_with_the_wrong_mpi(self):
        if reason := slurm_cluster.reason_against():
            self.skipTest(reason)
        with slurm_cluster.SlurmCluster(2) as slurm:
            for command in ("compress", "plan"):
                words = ["srun", "--mpi=none", "-n", 2, "--wait=10", BINARY, command, "config.yaml"]
                code, out, err = Job(words, self.folder, slurm.environment).result()
                lines = [line for line in err.splitlines() if line.startswith("selfcal:")]
                self.assertEqual((code, len(lines)), (USAGE, 1), f"{out}\n{err}")
                self.assertIn("the launcher started 2 ranks but MPI sees one", lines[0])

    def test_verify_and_inspect_of_nothing(self):
        self.check(self.selfcal("verify", "nowhere"), DATA, ["nowhere"], None)
        self.check(self.selfcal("inspect", "nowhere.h5"), INPUT_OUTPUT, ["nowhere.h5"], None)

    def test_output_folder_that_cannot_be_written(self):
        folder = self.fresh("file in the way")
        (folder / "run").write_text("not a folder")
        for ranks in (None, 2):
            self.check(self.compress_in(folder, ranks), INPUT_OUTPUT, ["run"], ranks)
        self.assertEqual((folder / "run").read_text(), "not a folder")

    def test_full_disk(self):
        """A file system that fills up while layers are written, then one that is full at the gathered checkpoint."""
        folder = self.fresh("full disk")
        disk = folder / "disk"
        disk.mkdir()
        script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'
        mount = ["unshare", "--mount", "sh", "-c", script, "sh"]
        if subprocess.run([*mount, "64k", disk, "true"], capture_output=True).returncode:
            self.skipTest("this machine lets no test mount a file system")
        for size in ("64k", "160k", "320k"):
            for ranks in (1, 3):
                with self.subTest(size=size, ranks=ranks):
                    job = Job([*mount, size, disk, "mpirun", "-n", ranks, BINARY, "compress", "config.yaml", "--set",
                               "output=disk/run"], folder)
                    self.check(job.result(), INPUT_OUTPUT, ["disk/run", os.strerror(28)], ranks)


if __name__ == "__main__":
    unittest.main(verbosity=2)
