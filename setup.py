"Package metadata: everything is read from settings.ini, the only place to edit it"
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license_expression=cfg["license"],
    keywords=cfg["keywords"].split(),
    project_urls={"Repository": cfg["git_url"], "Documentation": cfg["doc_url"]},
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Programming Language :: Python :: 3"],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    include_package_data=False,
    package_data={cfg["lib_path"]: ["data/*", "explorables/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require={o: cfg[f"{o}_requirements"].split() for o in ("dev", "bench", "distributed", "cluster", "peers", "lightning", "transformers", "pretrained")},
    entry_points={"console_scripts": [f"metarisk_study={cfg['lib_path']}.lab.cli:main"], "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
