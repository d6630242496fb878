"""``python -m cdga_sdk``."""

from cdga_sdk.start import main

main()
