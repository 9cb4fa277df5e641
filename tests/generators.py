"""Generators of load in C: what offers more than Python can, compiled where it is used."""

from __future__ import annotations

from pathlib import Path

from services.demo.lab import run_command


def compile_generator(source: Path, folder: Path) -> Path:
    """The program, in the folder; DemoError with what gcc says."""
    program = folder / source.stem
    run_command(["gcc", "-O2", "-Wall", "-Werror", "-pthread", "-o", str(program), str(source)])
    return program
