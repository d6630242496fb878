"""``python -m cdga_sdk``."""

from cdga_sdk.cli import main

main()
