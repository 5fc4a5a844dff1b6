"""`python -m dist_diffusion`."""

from dist_diffusion.cli.main import main

if __name__ == "__main__":
    main()
