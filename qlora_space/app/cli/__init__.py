"""The command line: `python -m qlora_space COMMAND`.

Read in this order:
    main      parser of all commands; exit status
    commands  one function per command
    terminal  what is printed for people, on stderr
    flags     flags from the fields of a request, and a request as a command line
"""
