"""The default rule of `prunable`: which leaves hold the weights of a linear map.

Arrays with two or more axes are weights unless their names, or the layers that hold them, show the opposite. Names
are read alike in all frameworks: `Dense_0/kernel`, `layers/0/weight` and `model.layers.0.mlp.up_proj.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxprune.tree_nodes import Leaf, equinox_layer, is_float_array, is_variable

# Collections of Linen variables other than `params`.
_COLLECTIONS = {
    "batch_stats", "buffers", "cache", "constants", "intermediates", "losses", "params_axes", "perturbations",
    "spectral_stats", "state",
}  # fmt: skip


def _names(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


# Adapters beside a weight, anywhere in a path: their leaves belong to another training.
_ADAPTER = _names(
    r"loras?",
    r"(.*_)?lora_?(a|b|down|up|mid|embedding.*|magnitude.*)(_.*)?",
    r".*_lora",
    r"(hada|lokr|vera|oft|ia3)_.*",
)
# Leaves with such names are no weights. Stacked (scanned or vmapped) layers add an axis to every bias, scale and
# statistic, so that their ranks tell nothing.
_NO_MATRIX = _names(
    r"(.*_)?bias(es)?(_.*)?|r_[rw]_bias",
    r"(.*_)?(beta|scales?|gamma|gain|offset|slope|temperature|lambda)_?\d*|(layer_?scale|ls)_?\d*",
    r"(.*_)?(mean|var|variance|std)_?\d*|(mean|var|variance)_ema|average|embed_avg",
    r"(weight|kernel)_(g|scale)|original0",
    r"(.*_)?masks?|tril|triu|sin|cos|cached_.*|(init|initial)_.*|(conv|ssm|recurrent|hidden|cell)_states?|h0|c0",
    r"cls|probe|.+_queries|(latent|learned|learnable|object)_query",
    r"time_(mix|maa)_.*",
)
_AVERAGED = _names(r"(.*_)?(mean|var|variance)_ema")  # Haiku's module around `average` and `hidden`
_STATISTIC = _names(r"(.*_)?(mean|var|variance|std)(_\d+)?|average|hidden")
# Tables, under these names or in modules with these names. Unless another word says that it is a linear map.
_EMBEDDING = _names(
    r"wte|tte|.*emb(d|ed|edd?ings?|eds|ds|s)?(_?\d+)?|(.*_)?embed_(tokens?|positions?|in|ids|types?)(_.*)?",
    r".*embeds_layers?",
)
_TABLE = _names(
    _EMBEDDING.pattern,
    r"token_types?|(.*_)?(table|codebooks?|codevectors|centroids|cluster_centers)",
    r"(?!to_|from_)(.*_)?(tokens?|tok|registers|prompts?|prefix(es)?|latents?)(_?\d+)?",
    r"pe(_k)?|wpe|(abs_|rel_|relative_)?pos(itions?)?|(.*_)?(rel)?pos(ition(s|al)?)?_.*",
    r"(height|width)_rel|rel_(height|width|b)|attn_rel_b|(.*_)?(attention|attn|relative|rel)_bias",
    r"(.*_)?(rope|rotary|freqs?|inv_freq)(_.*)?|sinusoid.*",
    # states of recurrences: Mamba, S4, S5, LRU, Griffin, RWKV
    r"A_log|log_A.*|A_(real|imag|re|im)|ssm_[ad]|(.*_)?(log|inv)_(dt|step)|lambda_(re|im|real|imag)",
    r"(nu|theta|gamma)_log|a_param|recurrent_param|time_(decay|first|faaaa)|time_mix_(lerp.*|first|decay.*)",
)
_NORM = _names(
    r"((.*_)?(ln|bn|gn)|(?!weight|spectral).*norm(s|alization)?)(_?\w?\d*|_(?!proj|lin|head|fc|dense)[a-z]+)"
)
# Words by which a module says that it is a linear map, whatever it embeds.
_LINEAR = _names(
    r"patch\w*|patches|lin(ear)?|dense|fc|ffn?|mlp|proj(ect(ion|or)?)?|conv\w*|conv\d?d|head|classifier|unembed\w*"
)
_OUTPUT = _names(
    "lm", "head", "decoder", "output", "out", "logits", "unembed.*", "predictions?", "classifier", "vocab"
)
# What a module calls its only array, be it a table, a scale or a weight.
_NEUTRAL = _names("w", "weights?", "tables?", "value", "data", "array", "default")
_BIAS_BESIDE = {"b": "w"}  # Haiku's bias is `b`, but so may be the second matrix of a plain dict
_STATE_BESIDE = {"D": "A_log", "dt": "A_log"}


def is_weight(leaf: Leaf, by_path: Mapping[str, Leaf]) -> bool:
    """Whether a leaf is a weight by default; `by_path` has all leaves of the tree."""
    if not is_float_array(leaf.value) or len(leaf.value.shape) < 2:
        return False
    parts = re.split("[/.]", leaf.path)
    if any(_ADAPTER.fullmatch(part) for part in parts) or _is_in_a_collection(leaf, by_path):
        return False
    if any(_AVERAGED.fullmatch(part) for part in parts[-2:-1]):
        return False
    by_holder = _holder_says(leaf)
    return _name_says(leaf, by_path) if by_holder is None else by_holder


def is_embedding(path: str) -> bool:
    """Whether a path is that of the table of an embedding."""
    return any(_EMBEDDING.fullmatch(part) for part in re.split("[/.]", path)[-2:])


def is_statistic(path: str) -> bool:
    """Whether a path is that of a statistic of activations, which no optimizer trains.

    >>> is_statistic("batch_stats/bn/mean"), is_statistic("bn/var"), is_statistic("bn/scale")
    (True, True, False)
    """
    *parents, name = re.split("[/.]", path)
    return bool(parents and parents[0] in _COLLECTIONS) or bool(_STATISTIC.fullmatch(name))


def is_output(path: str) -> bool:
    """Whether a path is that of the weight of an output layer: `lm_head.weight`, `output/kernel`."""
    *parents, name = re.split("[/.]", path)
    words = _words(parents[-1] if parents else name)
    return any(map(_OUTPUT.fullmatch, words)) and not any(part.isdigit() for part in parents)


def _is_in_a_collection(leaf: Leaf, by_path: Mapping[str, Leaf]) -> bool:
    """Whether a leaf is a Linen variable in a collection other than the parameters."""
    *parents, _ = re.split("[/.]", leaf.path)
    if "batch_stats" in parents:
        return True
    is_named = bool(parents) and parents[0] in _COLLECTIONS
    return is_named and any(other.keys[:1] == ("params",) for other in by_path.values())


def _has_a_bias(leaf: Leaf, by_path: Mapping[str, Leaf]) -> bool:
    """Whether a matrix has a bias beside it: tables have none, and the bias of stacked norms is a matrix too."""
    shape = leaf.value.shape
    cut = max(leaf.path.rfind("/"), leaf.path.rfind(".")) + 1
    if len(shape) != 2 or leaf.path[cut:] not in ("kernel", "w", "weight"):
        return False
    biases = (by_path.get(leaf.path[:cut] + name) for name in ("bias", "b"))
    lengths = [bias.value.shape for bias in biases if bias is not None and hasattr(bias.value, "shape")]
    return any(len(length) == 1 and length[0] in shape for length in lengths)


def _holder_says(leaf: Leaf) -> bool | None:
    """Whether the type of the node around a leaf makes it a weight; None if the type does not tell."""
    if is_variable(leaf.holder):
        from flax import nnx

        is_parameter = isinstance(leaf.holder, nnx.Param) and not isinstance(leaf.holder, nnx.LoRAParam)
        return None if is_parameter else False
    layer, name = equinox_layer(leaf.holder), str(leaf.keys[-1]) if leaf.keys else ""
    if layer is None:
        return None
    is_linear = layer in ("Linear", "GRUCell", "LSTMCell") or layer.startswith("Conv")
    return is_linear and name.startswith("weight")


def _name_says(leaf: Leaf, by_path: Mapping[str, Leaf]) -> bool:
    path, rank = leaf.path, len(leaf.value.shape)
    *parents, name = re.split("[/.]", path)
    for beside in (_BIAS_BESIDE, _STATE_BESIDE):
        if name in beside and path[: len(path) - len(name)] + beside[name] in by_path:
            return False
    if _has_a_bias(leaf, by_path):
        return True
    modules = [part for part in parents if not part.isdigit()]
    if name.isdigit() and modules:  # a list of arrays has their name
        name = modules.pop()
    if _NO_MATRIX.fullmatch(name) or _is_table(name):
        return False
    module = modules[-1] if modules else ""
    if name == "kernel":  # a stacked scale, as some RMSNorms call it
        return not (rank == 2 and _NORM.fullmatch(module))
    if not _NEUTRAL.fullmatch(name) or not module:
        return True
    if parents[-1].isdigit() and _EMBEDDING.fullmatch(module):
        # An MLP over embedded times or labels is a list, and so are the embeddings of several codebooks.
        return _words(module)[0] in ("time", "timestep") or parents[-2:][0].isdigit()
    return not (_NORM.fullmatch(module) or (rank <= 3 and _is_table(module)))


def _is_table(name: str) -> bool:
    return bool(_NORM.fullmatch(name)) or (bool(_TABLE.fullmatch(name)) and not _says_linear(name))


def _says_linear(name: str) -> bool:
    return any(_LINEAR.fullmatch(word) for word in _words(name))


def _words(name: str) -> list[str]:
    """The words of a name: `PatchEmbed_0` is patch, embed, 0."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+\d?d?|\d+", name) or [name]
