from qlora_space.cli import main

raise SystemExit(main())
