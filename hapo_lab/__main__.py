from hapo_lab.cli import main

main()
