"""Train a small ReLU network on scikit-learn's handwritten digits and write it as ONNX (the example of the README).

    python examples/train_digits.py            # writes examples/digits.onnx

The network is 64-32-32-10 with float32 weights; inputs are the 8x8 images scaled to [0, 1]. Needs scikit-learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import lipmodel as lm


def train(seed: int = 0) -> tuple[lm.Network, float]:
    """The trained network and its accuracy on held-out images."""
    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.data / 16.0, digits.target, test_size=0.25, random_state=seed, stratify=digits.target
    )
    model = MLPClassifier(hidden_layer_sizes=(32, 32), alpha=1e-2, max_iter=400, random_state=seed)
    model.fit(x_train, y_train)
    weights = [w.T.astype(np.float32) for w in model.coefs_]
    biases = [b.astype(np.float32) for b in model.intercepts_]
    net = lm.from_weights(weights, biases, activation="relu")
    predicted = [int(np.argmax(net.evaluate(x))) for x in x_test]
    return net, float(np.mean(np.array(predicted) == y_test))


if __name__ == "__main__":
    network, accuracy = train()
    target = Path(__file__).with_name("digits.onnx")
    network.save(target)
    print(f"{target.name}: accuracy {accuracy:.3f} on held-out images, sha256 {network.source.sha256[:16]}")
