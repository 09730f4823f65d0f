#!/usr/bin/env python3
"""The demo model's logits and perplexity in float32 are those of transformers."""
import unittest

from demo_model_case import (DemoModelCase, MODEL, load_dense, logits_by_transformers,
                             perplexity_by_transformers)


class LogitsParity(DemoModelCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model = load_dense(MODEL)

    def test_logits(self):
        tokens = self.tokens[0, :192].view(2, 96)
        self.assert_logits_agree(self.logits_by_selfcal(MODEL, tokens), logits_by_transformers(self.model, tokens),
                                 tolerance=1e-4)

    def test_perplexity(self):
        tokens = self.tokens[:, :1300]
        ours, theirs = self.perplexity_by_selfcal(MODEL, tokens), perplexity_by_transformers(self.model, tokens)
        print(f"perplexity: selfcal {ours:.4f}, transformers {theirs:.4f}")
        self.assertLess(abs(ours / theirs - 1), 1e-4)


if __name__ == "__main__":
    unittest.main(verbosity=2)
