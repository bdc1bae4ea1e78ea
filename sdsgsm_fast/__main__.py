"""`python -m sdsgsm_fast` is the command `sdsgsm`."""

from .cli import main

main()
