from ltcompile.cli import main

main()
