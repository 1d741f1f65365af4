"""`python -m segnet_jax.sweep`."""

from segnet_jax.sweep import main
from segnet_jax.system.command import run_command

if __name__ == "__main__":
    run_command(main)
