import sys

if sys.argv[1:] == ["doctor"]:  # must also run where a package is missing that the other commands import
    from hapo_lab.doctor import main
else:
    from hapo_lab.cli import main

main()
