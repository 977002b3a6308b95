"""Writes optimizer.npz: steps of every optimizer on given gradients, in float64 and plain numpy.

Written from the papers and Google's code, not from optax, with one array per layer, so that it can judge an
implementation that stacks layers:

- AdamW: google-research/bert, optimization.py, with the bias correction of Kingma & Ba (2015), algorithm 1,
  which Google's code leaves out and optax does not.
- LAMB: You et al. (2020), algorithm 2; as in Google's code, LayerNorm and biases get neither decay nor trust
  ratio.
- StableAdamW: Wortsman et al. (2023), algorithm 2, with the moments of AdamW above (debiased decay rates in
  the paper come to the same as bias correction); the rate that is divided by max(1, rms) scales decay, too.
- Muon: Jordan et al. (2024): five Newton-Schulz steps on the Nesterov momentum of each matrix of the layers,
  here with the bias correction of Dozat (2016), scaled by 0.2 √max(in, out) (Liu et al., 2025); AdamW for the
  rest; decay for all.

    python tests/parity/make_optimizer.py

Keys, with NAME as in Hugging Face's BertForPreTraining (3 layers, hidden 8; the values are random):
    hyperparameters         JSON: learning_rate (constant), beta1, beta2, epsilon, weight_decay, clip_norm
    weights/NAME            float32, before the first step
    gradients/NAME          float32 [steps, …], before clipping; one step's global norm is below clip_norm
    OPTIMIZER/NAME          float64 [steps, …], weights after every step of adamw, lamb, stable_adamw, muon
"""

import json
import pathlib

import numpy as np

HYPERPARAMETERS = {
    "learning_rate": 0.01,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-6,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "momentum": 0.95,
}
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
GRADIENT_NORMS = (3.0, 0.5, 20.0, 1.5, 1.001)  # one entry per step
LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY, POSITIONS = 3, 8, 16, 12, 10

Arrays = dict[str, np.ndarray]


def shapes() -> dict[str, tuple[int, ...]]:
    """Every parameter of BertForPreTraining; a Linear's weight is [out, in]."""
    result: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "bert.embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "bert.embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "cls.predictions.bias": (VOCABULARY,),
    }
    dense = {"bert.pooler.dense": (HIDDEN, HIDDEN), "cls.predictions.transform.dense": (HIDDEN, HIDDEN)}
    dense["cls.seq_relationship"] = (2, HIDDEN)
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for layer in (f"bert.encoder.layer.{i}" for i in range(LAYERS)):
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            dense[f"{layer}.attention.{name}"] = (HIDDEN, HIDDEN)
        dense[f"{layer}.intermediate.dense"] = (INTERMEDIATE, HIDDEN)
        dense[f"{layer}.output.dense"] = (HIDDEN, INTERMEDIATE)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name, shape in dense.items():
        result |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        result |= {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}
    return result


def decays(name: str) -> bool:
    return "LayerNorm" not in name and not name.endswith("bias")


def clipped(gradients: Arrays, limit: float) -> Arrays:
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
    return {name: g * limit / max(norm, limit) for name, g in gradients.items()}


def is_matrix_of_layers(name: str) -> bool:
    return ".layer." in name and decays(name)


def adam(g: np.ndarray, m: np.ndarray, v: np.ndarray, t: int) -> tuple[np.ndarray, ...]:
    """Adam's update, and the moments after it."""
    beta1, beta2 = HYPERPARAMETERS["beta1"], HYPERPARAMETERS["beta2"]
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    return (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + HYPERPARAMETERS["epsilon"]), m, v


def trust_ratio(w: np.ndarray, update: np.ndarray) -> float:
    w_norm, update_norm = np.linalg.norm(w), np.linalg.norm(update)
    return w_norm / update_norm if w_norm > 0 and update_norm > 0 else 1.0


def stability(g: np.ndarray, v: np.ndarray, t: int) -> float:
    """What StableAdamW divides the rate by."""
    v = v / (1 - HYPERPARAMETERS["beta2"] ** t)
    return max(1.0, np.sqrt(np.mean(g**2 / np.maximum(v, HYPERPARAMETERS["epsilon"] ** 2))))


def orthogonalised(x: np.ndarray) -> np.ndarray:
    a, b, c = NEWTON_SCHULZ
    if x.shape[0] > x.shape[1]:
        return orthogonalised(x.T).T
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


def steps(weights: Arrays, gradients: list[Arrays], optimizer: str) -> list[Arrays]:
    """Weights after each step of an optimizer."""
    h = HYPERPARAMETERS
    m = {name: np.zeros_like(w) for name, w in weights.items()}
    v = {name: np.zeros_like(w) for name, w in weights.items()}
    history = []
    for t, raw in enumerate(gradients, start=1):
        after = {}
        for name, g in clipped(raw, h["clip_norm"]).items():
            w, scale = weights[name], 1.0
            if optimizer == "muon" and is_matrix_of_layers(name):
                beta = h["momentum"]
                m[name] = beta * m[name] + (1 - beta) * g
                nesterov = beta * m[name] / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
                update = 0.2 * np.sqrt(max(w.shape)) * orthogonalised(nesterov)
            else:
                update, m[name], v[name] = adam(g, m[name], v[name], t)
            if decays(name):
                update = update + h["weight_decay"] * w
                scale = trust_ratio(w, update) if optimizer == "lamb" else 1.0
            if optimizer == "stable_adamw":
                scale = 1 / stability(g, v[name], t)
            after[name] = w - h["learning_rate"] * scale * update
        weights = after
        history.append(weights)
    return history


def make() -> Arrays:
    """All arrays of the file."""
    rng = np.random.default_rng(0)

    def random(spread: float) -> Arrays:
        """Random arrays whose scale differs from one to the next, exact in float32."""
        return {
            name: (10 ** rng.uniform(-spread, spread) * rng.standard_normal(shape)).astype(np.float32)
            for name, shape in shapes().items()
        }

    weights = random(spread=1.0)
    weights["cls.seq_relationship.weight"][:] = 0.0  # no norm: a trust ratio of 1 in the first step
    gradients = []
    for target in GRADIENT_NORMS:
        raw = random(spread=1.0)
        raw["bert.embeddings.word_embeddings.weight"][3:6] = 0.0  # tokens that the batch does not have
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in raw.values()))
        gradients.append({name: (g * (target / norm)).astype(np.float32) for name, g in raw.items()})

    wide = [{name: a.astype(np.float64) for name, a in arrays.items()} for arrays in (weights, *gradients)]
    arrays = {"hyperparameters": np.array(json.dumps(HYPERPARAMETERS))}
    steps_of = {name: steps(wide[0], wide[1:], name) for name in ("adamw", "lamb", "stable_adamw", "muon")}
    for kind, history in {"gradients": gradients, **steps_of}.items():
        arrays |= {f"{kind}/{name}": np.stack([step[name] for step in history]) for name in weights}
    return arrays | {f"weights/{name}": value for name, value in weights.items()}


if __name__ == "__main__":
    np.savez_compressed(pathlib.Path(__file__).with_name("optimizer.npz"), **make())
