"""The `farm` command's subcommands, one a file, each with its click command in `COMMAND`; `producer.cli` lists them."""
