"""The training script of keras #20713, which reaches another accuracy on each backend, on scikit-learn's digits.

    zoo verify --train docs/examples/keras_20713.py:main --steps 20

The layers, the optimizer and the batch size are those of the issue; MNIST is replaced by the 1,797 digits of 8x8 pixels
that scikit-learn carries, enlarged to 28x28.
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits


def main():
    keras.utils.set_random_seed(0)
    digits = load_digits()
    x = np.kron(digits.images, np.ones((1, 3, 3)))[..., None].astype("float32") / 16.0  # 24x24
    x, y = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), digits.target

    inputs = keras.Input(shape=(28, 28, 1), name="input_layer")
    hidden = layers.Conv2D(32, kernel_size=(3, 3), activation="relu", name="conv_1")(inputs)
    hidden = layers.MaxPooling2D(pool_size=(2, 2), name="pool_1")(hidden)
    hidden = layers.Conv2D(64, kernel_size=(3, 3), activation="relu", name="conv_2")(hidden)
    hidden = layers.MaxPooling2D(pool_size=(2, 2), name="pool_2")(hidden)
    hidden = layers.Flatten(name="flatten")(hidden)
    hidden = layers.Dense(128, activation="relu", name="dense_1")(hidden)
    outputs = layers.Dense(10, activation="softmax", name="output")(hidden)
    model = keras.Model(inputs, outputs)

    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=5)


if __name__ == "__main__":
    main()
