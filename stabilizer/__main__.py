"""`python -m stabilizer` is the command `stabilizer`."""

from stabilizer.cli.main import app

if __name__ == "__main__":
    app(prog_name="stabilizer")
