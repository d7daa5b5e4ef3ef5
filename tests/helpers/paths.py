"""Where the checkout, or the unpacked source distribution, is."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
