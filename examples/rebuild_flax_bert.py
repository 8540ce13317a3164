"""transformers' FlaxBert loses FFN units, and is built anew from a configuration of the smaller size.

pip install transformers==4.48.3        # a version that has Flax models
python examples/rebuild_flax_bert.py

With `FlaxBertModel.from_pretrained(name)` in place of the random model, its weights are pruned in the same way.
`rebuilt.save_pretrained(folder, params=small)` writes the small one, which `from_pretrained(folder)` reads.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from transformers import BertConfig, FlaxBertModel

import jaxprune as jp

FFN = "encoder/layer/*/intermediate/dense/bias[0]"  # as the printed groups name it; any member will do


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args(argv)
    sizes = {
        "hidden_size": 96,
        "num_attention_heads": 8,
        "num_hidden_layers": options.layers,
        "vocab_size": 99,
    }
    model = FlaxBertModel(BertConfig(intermediate_size=256, **sizes))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 99, (2, 16)))

    def fn(params, ids):
        return model(ids, params=params)[0]

    groups = jp.find_groups(fn, model.params, ids)
    plan = jp.plan_removal(
        groups, model.params, 0.4, "global", only=FFN, alike=FFN, round_to=8, budget="units"
    )
    print(plan.dimensions())
    width = plan.dimensions()[FFN].new

    rebuilt = FlaxBertModel(BertConfig(intermediate_size=width, **sizes))
    small = plan.shrink(model.params)
    found = rebuilt(ids, params=small)[0]
    wanted = fn(jp.apply_masks(model.params, plan.masks(model.params)), ids)
    error = float(jnp.abs(found - wanted).max())
    print(f"intermediate_size {width} instead of 256; largest difference from the masked model {error:.1e}")
    print(f"{sum(map(jnp.size, jax.tree.leaves(small)))} parameters")
    return error


if __name__ == "__main__":
    main()
