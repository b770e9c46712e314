from qlora_space.app.cli.main import main

raise SystemExit(main())
